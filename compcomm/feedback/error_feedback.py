"""ErrorFeedback: what was not sent is kept, and added to the next gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..bucket import Bucket, Segment
from ..reducer import Context, Flow
from ..store import Merge, Slot, State
from .scheme import Scheme


@dataclass(frozen=True, repr=False)
class ErrorFeedback(Scheme):
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

    def memory(self, segment: Segment) -> Mapping[str, Slot]:
        return {} if self.exact(segment) else {"residual": Slot(Merge.MEAN, pending=True)}

    def step(
        self, x: Bucket, out: Bucket, state: State, ctx: Context, scale: float, out_scale: float, accumulate: bool
    ) -> Flow:
        residual = state["residual"]
        result = yield from self.inner.reduce(
            residual, out, state, ctx, add=x, add_scale=scale, out_scale=out_scale, accumulate=accumulate
        )

        def undo() -> None:
            result.undo()
            if result.sent is not None:
                result.sent.add_(residual)

        return replace(result, error=None, undo=undo)


ErrorFeedback.owner = ErrorFeedback
