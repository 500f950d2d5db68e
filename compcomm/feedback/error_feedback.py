"""ErrorFeedback: what was not sent is kept, and added to the next gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..bucket import Bucket, Segment
from ..compressor import Compressor
from ..reducer import Context, Flow, Reduced, Reducer, settle
from ..store import Merge, Slot, State


@dataclass(frozen=True, repr=False)
class ErrorFeedback(Reducer):
    """p = e + g;  send c = C(p);  e <- p - c;  out = mean of c over the ranks.

    Conservation: sum of outs + mean residual (+ server residuals in two-phase) = sum of mean gradients. The learning
    rate stays outside the memory, as a gradient hook sees gradients only: equal to the published form while the rate
    is constant, a small and usual deviation where it changes.

    Needs a contraction (delta > 0). An unbiased compressor that is none is wrapped: ``Contractive(c)``. Any other is
    refused: its residual may grow without bound.

    State: slot "residual", fp32, one per element that does not travel exact, MEAN. The residual is the buffer that the
    kernels code from, so the scheme costs no pass over memory of its own. A step that any rank found non-finite gives
    its payload back to the residual: nothing is lost.

    Source: Seide et al. 2014; Stich, Cordonnier, Jaggi 2018 (arXiv:1809.07599), Algorithm 1; Karimireddy et al. 2019
    (arXiv:1901.09847), Algorithm 2.
    """

    reducer: Reducer | Compressor

    def __post_init__(self) -> None:
        if not isinstance(self.reducer, Reducer | Compressor):
            raise TypeError(f"ErrorFeedback({self.reducer!r}): give a compressor or a reducer, such as TopK(0.01).")
        object.__setattr__(self, "reducer", self.reducer.contractive())

    @property
    def feedback_cure(self) -> str:
        return f"It has feedback already: use {self!r} as it is."

    def settle(self, world: int) -> Reducer:
        return ErrorFeedback(settle(self.reducer, world).under_feedback())

    @property
    def _inner(self) -> Reducer:
        if not isinstance(self.reducer, Reducer):
            raise TypeError(f"{self!r}: no route yet. Call settle(reducer, world) first.")
        return self.reducer

    @property
    def stateful(self) -> bool:
        return True

    def exact(self, segment: Segment) -> bool:
        return self.reducer.exact(segment)

    def in_order(self, slot: str, segment: Segment, joined: Tensor) -> Tensor:
        return self._inner.in_order(slot, segment, joined)

    def conserves(self, segment: Segment) -> bool:
        return self._inner.conserves(segment)

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        inner = self._inner.slots(segment, world)
        if self.exact(segment):
            return inner
        if self.conserves(segment):  # what an owner still owes counts as the mean residual does
            owed = {n: replace(s, into="residual") for n, s in inner.items() if s.merge is Merge.SHARDED}
            inner = {**inner, **owed}
        return {"residual": Slot(Merge.MEAN, pending=True), **inner}

    def reduce(
        self,
        x: Bucket,
        out: Bucket,
        state: State,
        ctx: Context,
        *,
        add: Bucket | None = None,
        decay: float = 1.0,
        add_scale: float = 1.0,
        out_scale: float = 1.0,
        accumulate: bool = False,
    ) -> Flow:
        if add is not None or decay != 1.0:
            raise TypeError(f"{self!r} holds its own memory: it takes a gradient, not add= or decay=.")
        residual, unscale = state["residual"], ctx.unscale
        ctx.unscale = 1.0  # what is inside sees unscaled numbers
        try:
            result = yield from self._inner.reduce(
                residual, out, state, ctx,
                add=x, add_scale=add_scale * unscale, out_scale=out_scale / unscale, accumulate=accumulate,
            )  # fmt: skip
        finally:
            ctx.unscale = unscale

        def undo() -> None:
            result.undo()
            if result.sent is not None:
                result.sent.add_(residual)

        return Reduced(result.sent, None, undo)
