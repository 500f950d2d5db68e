"""ErrorFeedback: what was not sent is kept, and added to the next gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch

from ..compressors.cast import Cast
from ..compressors.qsgd import QSGD
from ..core.compressor import Compressor
from ..core.context import Context
from ..core.layout import Bucket, Layout, Segment
from ..core.reducer import Flow, traits_of
from ..core.source import Source, Target
from ..core.state import Merge, Slot, State
from ..core.traits import Promises, Traits
from ..ops.checks import FLOATS
from ..state import quantized
from . import slabs
from .base import FeedbackScheme, is_number

_CODECS: dict[torch.dtype, Compressor] = {
    torch.bfloat16: Cast(torch.bfloat16, dense_below=0),
    torch.int8: QSGD(bits=8, rounding="nearest", block=64, dense_below=0),
}
_DTYPES = (torch.float32, torch.float64, *_CODECS)


@dataclass(frozen=True, repr=False)
class ErrorFeedback(FeedbackScheme):
    """p = decay e + g;  send c = C(p);  e <- (1 - average) e + average (p - c);  out = mean of c over the ranks.

    - ``decay`` in (0, 1]: 1 forgets nothing.
    - ``dtype`` of the residual: ``float32``; ``bfloat16``; ``int8``, codes of 8 bits with a scale per 64 elements, 1.06
      bytes per parameter; ``float64``, for double-precision gradients.
    - ``average`` in (0, 1]: 1 is plain feedback. Below, the residual is a moving average of the errors.
    - ``reset``: the residual begins at zero again every so many steps; 0: never. (Not the owners' in two-phase.)

    ``ErrorFeedback(QSGD(bits=4, rounding="nearest"), dtype=torch.int8, average=0.1, reset=512)`` is LoCo: the average
    and the resets keep the rounding of the 8-bit residual from piling up.

    Conservation, with decay = average = 1, no reset and fp32 or fp64: sum of outs + mean residual (+ server residuals
    in two-phase) = sum of mean gradients. |e|^2 <= 4 (1 - delta) G^2 / delta^2 while |g| <= G.

    Learning rate: it stays outside the memory, as a gradient hook sees gradients only: equal to the published form
    while the rate is constant. Where it changes, ``attachment.rescale_error(old_lr, new_lr)`` makes it equal again;
    without that the deviation is small and usual.

    Needs a contraction (delta > 0). An unbiased compressor that is none is wrapped: ``Contractive(c)``. Any other is
    refused: its residual may grow without bound.

    State: slot "residual", one per element that does not travel exact, MEAN. In fp32 and without average it is the
    buffer that the kernels code from, so that the scheme costs no pass over memory of its own. Otherwise it is read
    into fp32 numbers that buckets share, and stored again before the step ends. A step that any rank found non-finite
    gives its payload back to the residual (that times ``average``): nothing is lost but the storage's rounding.

    Source: Seide et al. 2014; Stich, Cordonnier, Jaggi 2018 (arXiv:1809.07599), Algorithm 1; Karimireddy et al. 2019
    (arXiv:1901.09847), Algorithm 2, and Lemma 3 for the bound; Xie et al. 2024 (arXiv:2407.04480), LoCo.
    """

    decay: float = 1.0
    dtype: torch.dtype = torch.float32
    average: float = 1.0
    reset: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, meaning in (("decay", "what a step keeps of the residual"), ("average", "a new error's weight")):
            value = getattr(self, field)
            if not is_number(value) or not 0.0 < value <= 1.0:
                raise ValueError(
                    f"ErrorFeedback({field}={value!r}): a number in (0, 1], {meaning}; 1 is plain feedback."
                )
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"ErrorFeedback(dtype={self.dtype!r}): residuals are torch.float32, bfloat16, int8 (codes) or float64."
            )
        if isinstance(self.reset, bool) or not isinstance(self.reset, int) or self.reset < 0:
            raise ValueError(f"ErrorFeedback(reset={self.reset!r}): a number of steps, an integer; 0 never resets.")

    @property
    def _codec(self) -> Compressor | None:
        return _CODECS.get(self.dtype)

    @cached_property
    def traits(self) -> Traits:
        half = self.dtype != torch.float64 and traits_of(self.reducer).half
        return super().traits._replace(half=half)

    def promises(self, segment: Segment) -> Promises:
        inside = super().promises(segment)
        lossless = self._codec is None and self.decay == self.average == 1.0 and not self.reset
        return inside if lossless or self.exact(segment) else inside._replace(conserves=False)

    def memory(self, segment: Segment) -> Mapping[str, Slot]:
        if self.exact(segment):
            return {}
        dtype = self.dtype if self._codec is None else torch.uint8
        codec = None if self._codec is None else quantized.Quantized(self._codec)
        return {"residual": Slot(Merge.MEAN, dtype=dtype, codec=codec, pending=True)}

    def step(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        x = source.x
        due = torch.float64 if self.dtype == torch.float64 else torch.float32
        if x.flat.dtype != due and not (due == torch.float32 and x.flat.dtype in FLOATS):
            raise TypeError(f"{self!r}: gradients are {x.flat.dtype} here. Use dtype={str(x.flat.dtype)[6:]}.")
        residual = state["residual"]
        if self.reset and ctx.step and ctx.step % self.reset == 0:
            residual.flat.zero_()
        # A plain residual is the source's x itself: kernels read it, add the gradient and leave the error there in one
        # pass over memory. Quantised, or averaged over steps, it is read into numbers first and written back.
        plain = self._codec is None and self.average == 1.0
        held = residual if plain else self._read(residual, x.layout, ctx)
        result = yield from self.inner.reduce(Source(held, x, self.decay, source.decay), target, state, ctx)
        if not plain:
            self._store(residual, held, ctx, self.average)
        layout = x.layout

        def on_rollback() -> None:
            result.on_rollback()
            if result.sent is None:
                return
            # Residual and gradient were added up, so what was sent is all that is missing. A gradient that is not
            # finite never entered: what remains is the finite part of the step, as the loss scaler expects.
            if self._codec is None:
                result.sent.add_(residual, self.average)
                return
            again = self._read(residual, layout, ctx)
            result.sent.add_(again, self.average)
            self._store(residual, again, ctx, 1.0)

        return replace(result, error=None, on_rollback=on_rollback)

    def _read(self, residual: Bucket, layout: Layout, ctx: Context) -> Bucket:
        """The residual as numbers, on loan until ``_store``."""
        layout = _kept(self, layout)
        double = residual.flat.dtype == torch.float64
        held = Bucket(ctx.arena.lend(layout.numel * (2 if double else 1)), layout)
        if double:
            held = Bucket(held.flat.view(torch.float64), layout)
        if self._codec is None:
            held.flat.copy_(residual.flat)
        else:
            quantized.decode_(residual.flat, layout, self._codec, held)
        return held

    def _store(self, residual: Bucket, held: Bucket, ctx: Context, average: float) -> None:
        """residual <- (1 - average) residual + average held; ends the loan."""
        if self._codec is None:
            discarded = slabs.zero_status(ctx, held.layout, "discarded")
            slabs.axpby(residual, held, discarded, alpha=1.0 - average, beta=average)
        else:
            if average < 1.0:
                held.flat.mul_(average)
                quantized.decode_add_(residual.flat, held.layout, self._codec, held, 1.0 - average)
            quantized.encode_(held, residual.flat, self._codec, status=slabs.zero_status(ctx, held.layout, "discarded"))
        ctx.arena.take_back(held.flat)


ErrorFeedback.owner = ErrorFeedback


@lru_cache(maxsize=4096)
def _kept(scheme: ErrorFeedback, layout: Layout) -> Layout:
    """The segments that have a residual, end to end, as the store packs them."""
    return layout.select(lambda s: s.numel > 0 and not scheme.exact(s)).packed()
