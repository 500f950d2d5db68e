"""EF21: what crosses the wire is the change of an estimate, so compression errors vanish as the estimates settle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import fsum

import torch

from ..core.context import Context
from ..core.layout import Segment
from ..core.reducer import Flow, Reduced, Reducer, Resolving
from ..core.source import Source, Target
from ..core.spans import clear_
from ..core.state import Merge, Slot, State
from ..core.traits import Traits
from . import slabs
from .base import is_number
from .estimates import EstimateScheme, lacking, wanted


@dataclass(frozen=True, repr=False)
class EF21(EstimateScheme):
    """c = C(g - h);  h <- h + c;  m <- m + mean of c over the ranks;  out = m.

    ``h`` is the rank's estimate of its own gradient, ``m`` = mean of h the estimate of the mean, equal on all ranks.
    Without noise it converges to the exact optimum, which error feedback with a constant step does not between unlike
    ranks; with small batches the noise is amplified, which ``momentum`` mends.

    - ``momentum`` = eta in (0, 1]: v <- (1 - eta) v + eta g is what is estimated (EF21-SGDM). 1: the gradient itself.
    - ``weights`` = (w_1, ..., w_W), positive, with sum 1 (EF21-W): c = C(g/(W w) - h), m <- m + sum of w c. For
      compressors with C(a x) = a C(x) the means are EF21's own and only the permitted step grows, from
      1/(L + L_QM xi) to 1/(L + L_AM xi), xi = sqrt(1 - delta)/(1 - sqrt(1 - delta)); see ``smoothness_weights``.
    - ``start``: step 0 is dense, h = g and m = mean of g, as published. False: h = m = 0. (In ``Warmup`` steps go by
      unseen, and a step 0 that overflows is undone: the estimates then begin at zero, which costs steps alone.)
    - In two-phase the owner's loss is fed back too: its residual is mean(h) - m, so C of it is the published
      bidirectional form (EF21-BC), ``TwoPhase(c, server=EF21)``, chosen by default.
    - Ranks may sit steps out (EF21-PP): h stays, nothing is sent, m is still the mean of all h. In the ``Simulator``.

    Learning rate: h and m estimate gradients and hold nothing that is still to be applied: a change of the rate needs
    no rescaling. Heavy-ball momentum is that of the optimizer (EF21-HB). A bad step is undone (h and m give back what
    they took; v keeps the finite part). Where every rank's gradient is zero, out is zero and the estimates rest.

    State: "estimate" h and, with momentum, "momentum" v, MEAN; "mean" m, REPLICATED; fp32, or ``dtype=float64``, for
    double-precision gradients. Parameters that travel exact have none (but zeros in "mean").

    Source: Richtarik, Sokolov, Fatkhullin 2021 (arXiv:2106.05203), Algorithm 2; Fatkhullin et al. 2021
    (arXiv:2110.03294), Algorithms 3 to 5 (PP, BC, HB); Fatkhullin, Tyurin, Richtarik 2023 (arXiv:2305.15155), Algorithm
    1; Richtarik, Gasanov, Burlachenko 2024 (arXiv:2402.10774), Algorithm 2. They step with the m of the last round; a
    hook is asked for the gradient after it is computed, and gives the newest.
    """

    momentum: float = 1.0
    weights: tuple[float, ...] | None = field(default=None, metadata={"per_world": True})
    start: bool = True
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.momentum) or not 0.0 < self.momentum <= 1.0:
            raise ValueError(
                f"EF21(momentum={self.momentum!r}): a number in (0, 1], the weight of the new gradient; 1 takes it "
                f"alone."
            )
        if self.weights is not None:
            object.__setattr__(self, "weights", _checked(self.weights))

    def resolve(self, to: Resolving) -> Reducer:
        found, world = super().resolve(to), to.world
        assert isinstance(found, EF21)
        if self.weights is not None and len(self.weights) != world:
            raise ValueError(
                f"EF21(weights={self.weights}): {len(self.weights)} weights and {world} ranks. Give one per rank, in "
                f"rank order."
            )
        if self.weights is not None and not found.inner.traits.weights:
            raise ValueError(f"{found!r}: {found.inner!r} takes no weights. Use AllGather(...) or TwoPhase(...).")
        return found

    @cached_property
    def traits(self) -> Traits:
        return super().traits._replace(absence=True)

    def memory(self, segment: Segment) -> Mapping[str, Slot]:
        mean = {"mean": Slot(Merge.REPLICATED, dtype=self.dtype)}
        if self.exact(segment):
            return mean
        own = {"estimate": Slot(Merge.MEAN, dtype=self.dtype, weights=self.weights)}  # h is g/(W w), and v is g
        if self.momentum < 1.0:
            own["momentum"] = Slot(Merge.MEAN, dtype=self.dtype)
        return {**own, **mean}

    def step(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        estimate, mean, x, scale = state["estimate"], state["mean"], source.x, source.decay
        self.same_dtype(x)
        share = 1.0 if self.weights is None else ctx.world * self.weights[ctx.rank]
        if self.start and ctx.step == 0:
            tracked = [(estimate, 1.0 / share)]
            if self.momentum < 1.0:
                tracked.append((state["momentum"], 1.0))
            return (yield from self.begin(tracked, mean, source, target, state, ctx))
        status = slabs.zero_status(ctx, x.layout)
        slabs.nonzero_segments(x, status)
        here = 1.0 if ctx.participating else 0.0  # an absent rank codes zeros
        if self.momentum < 1.0:
            v = state["momentum"]
            if ctx.participating:
                slabs.axpby(v, x, status, alpha=1.0 - self.momentum, beta=self.momentum * scale)
            # The inner reducer multiplies by the scale. Whether a gradient is there at all is said of g, not of v,
            # which may be nonzero where g is zero: so this status is discarded.
            slabs.axpby(x, v, slabs.zero_status(ctx, v.layout, "discarded"), beta=1.0 / scale)
        # y = g - h with h as ``add``, which kernels only read: what they do not send they leave in x.
        ctx.weights, ctx.status = self.weights, status
        change = Source(x, estimate, decay=here * scale / share, add_scale=-here)
        estimates = Target(wanted(mean, target.out), accumulate=True, row=target.row)
        result = yield from self.inner.reduce(change, estimates, state, ctx)
        # By what was sent, and not by what was meant: so h on this rank and its part of m never drift apart.
        if result.sent is not None:
            result.sent.add_(estimate)
        exact = lacking(mean, estimate)
        if ctx.present is not None and ctx.present:  # what travels exact is the mean of those who are there
            slabs.axpby(exact, exact, slabs.zero_status(ctx, exact.layout, "discarded"), beta=ctx.world / ctx.present)
        self.deliver(result, x.layout, mean, exact, target, ctx)

        def on_rollback() -> None:
            result.on_rollback()
            clear_(exact)  # delivered and cleared by then: the rollback left minus the mean there
            if result.sent is not None:
                result.sent.add_(estimate, -1.0)

        return Reduced(on_rollback=on_rollback, bad=result.bad, unused=result.unused)


EF21.owner = EF21


def _checked(weights: tuple[float, ...]) -> tuple[float, ...]:
    if not isinstance(weights, tuple | list) or not all(map(is_number, weights)):
        raise TypeError(f"EF21(weights={weights!r}): one number per rank, in rank order.")
    if any(not 0.0 < w < float("inf") for w in weights):
        raise ValueError(f"EF21(weights={weights}): every weight is positive and finite.")
    if abs(fsum(weights) - 1.0) > 1e-6:
        raise ValueError(
            f"EF21(weights={weights}): they add up to {fsum(weights):.6g}, and must to 1: divide each by the sum."
        )
    return tuple(float(w) for w in weights)
