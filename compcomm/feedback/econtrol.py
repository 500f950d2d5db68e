"""EControl: estimates as in EF21, and a residual that feeds back what they lag behind, at a rate eta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ..core.context import Context
from ..core.layout import Segment
from ..core.reducer import Flow, Reduced, Reducer, Resolving
from ..core.source import Source, Target
from ..core.spans import clear_
from ..core.state import Merge, Slot, State
from . import slabs
from .base import is_number
from .ef21 import EF21
from .estimates import EstimateScheme, lacking, wanted


@dataclass(frozen=True, repr=False)
class EControl(EstimateScheme):
    """c = C(eta e + g - h);  h <- h + c;  e <- e + g - h;  m <- m + mean of c over the ranks;  out = m.

    ``h`` is the rank's estimate of its own gradient and ``e`` what the estimates have left out so far. Without noise it
    converges to the exact optimum as EF21 does, between ranks as unlike as may be; with small batches the error brings
    back what EF21 loses, and the noise stays near that of SGD. One message a step, of the wrapped reducer's size.

    - ``eta`` in (0, 1]: the strength of the feedback. None: delta of a large parameter (2**20 elements), a good value
      in practice; the settled reducer shows it. Near 0 it is EF21, far above delta it diverges; the theory asks for a
      small part of delta.
    - ``start``: step 0 is dense, h = g, m = mean of g, e = 0, as published. False: all zero, and so after a step 0
      that overflows or that ``Warmup`` takes.
    - In two-phase the owner's loss is fed back as in EF21: its residual is mean(h) - m.

    Conservation: sum of the steps' h + e = sum of g on every rank, so that the outs and the mean of e (and, in
    two-phase, the owners' residuals of all steps) add up to the mean gradients. A bad step changes neither h nor m, and
    the finite part of its gradient stays in e, as in ``ErrorFeedback``. Where every rank's gradient is zero, out is
    zero and h, e, m rest.

    Learning rate: it stays outside the memory. e is gradient that is still to be applied, so where the rate changes,
    ``attachment.rescale_error(old_lr, new_lr)`` keeps what waits at the size that it had (the published form lets it
    grow or shrink with the rate); h and m need nothing.

    State: "estimate" h and "error" e, MEAN; "mean" m, REPLICATED; fp32, or ``dtype=float64``, for double-precision
    gradients. Parameters that travel exact have none (but zeros in "mean"). Two passes over memory more than EF21: one
    makes eta e + g - h, one e <- (1 - eta) e + what was not sent, which is the same as above.

    Source: Gao, Islamov, Stich 2024 (arXiv:2311.05645), the algorithm EControl.
    """

    eta: float | None = None
    start: bool = True
    dtype: torch.dtype = torch.float32

    owner = EF21

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta is not None and (not is_number(self.eta) or not 0.0 < self.eta <= 1.0):
            raise ValueError(
                f"EControl(eta={self.eta!r}): a number in (0, 1], the strength of the feedback; None takes the "
                f"compressor's delta."
            )

    def resolve(self, to: Resolving) -> Reducer:
        found = super().resolve(to)
        assert isinstance(found, EControl)
        if found.eta is not None:
            return found
        delta = found.inner.promises(Segment("", (1, _TYPICAL), 0, _TYPICAL)).delta
        if not delta:
            raise ValueError(f"{found!r}: {found.inner!r} promises no delta to take as eta. Give eta=, such as 0.1.")
        return replace(found, eta=float(f"{delta:.3g}"))

    def memory(self, segment: Segment) -> Mapping[str, Slot]:
        mean = {"mean": Slot(Merge.REPLICATED, dtype=self.dtype)}
        if self.exact(segment):
            return mean
        own = {
            "estimate": Slot(Merge.MEAN, dtype=self.dtype),
            "error": Slot(Merge.MEAN, dtype=self.dtype, pending=True),
        }
        return {**own, **mean}

    def step(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        assert self.eta is not None
        estimate, error, mean, x = state["estimate"], state["error"], state["mean"], source.x
        self.same_dtype(x)
        if self.start and ctx.step == 0:
            tracked = [(estimate, 1.0)]
            begun = yield from self.begin(tracked, mean, source, target, state, ctx)
            return begun.after(
                lambda: slabs.axpby(error, estimate, slabs.zero_status(ctx, estimate.layout, "discarded"))
            )
        status = slabs.zero_status(ctx, x.layout)
        slabs.nonzero_segments(x, status)
        slabs.add_correction(x, error, estimate, status, eta=self.eta, scale=1.0 / source.decay)
        ctx.status = status
        estimates = Target(wanted(mean, target.out), accumulate=True, row=target.row)
        result = yield from self.inner.reduce(source, estimates, state, ctx)
        if result.sent is not None:
            result.sent.add_(estimate)
        slabs.axpby_used(error, x, x.layout, result.unused, ctx, alpha=1.0 - self.eta)
        exact = lacking(mean, estimate)
        self.deliver(result, x.layout, mean, exact, target, ctx)

        def on_rollback() -> None:
            result.on_rollback()
            clear_(exact)
            slabs.axpby_used(error, estimate, x.layout, result.unused, ctx, alpha=1.0)
            if result.sent is not None:
                result.sent.add_(estimate, -1.0)

        return Reduced(result.sent, on_rollback=on_rollback, bad=result.bad, unused=result.unused)


_TYPICAL = 1 << 20
