"""DGC: momentum goes before compression, so that what waits to be sent is velocity and not bare gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..combine.setting import (
    field,
    refuse_inner,
    setting,
    tuned,
)
from ..compressors.topk import is_integer
from ..core.compressor import Compressor
from ..core.context import Context
from ..core.layout import Bucket, Segment
from ..core.reducer import Flow, Reduced, Reducer
from ..core.source import Source, Target
from ..core.state import Merge, Slot, State
from ..core.structure import Group
from ..core.traits import Traits
from . import slabs
from .base import FeedbackScheme, is_number
from .error_feedback import ErrorFeedback


@dataclass(frozen=True, repr=False)
class DGC(FeedbackScheme):
    """u <- m u + g;  v <- v + u;  send c = C(v);  v <- v - c;  u <- 0 where something was sent;  out = mean of c.

    Deep gradient compression: the rank's own momentum m is taken before compression (momentum correction), so an
    element that waits moves as far as it would have under momentum SGD, and the optimizer must have no momentum of its
    own. What is sent loses its momentum (factor masking), which would push on in a direction that is out of date.

    - ``momentum`` = m in [0, 1). ``nesterov``: u <- m (u + g); v <- v + u + g.
    - ``masking=False`` keeps u. Conservation then: sum of c + v = sum of u. With density 1 that is momentum SGD; with
      masking it is plain SGD. Compressors that send every element need ``masking=False``: it would leave no momentum.
    - ``clip``: a parameter's gradient is scaled down to the L2 norm clip / sqrt(W) before it is taken up, as the sum of
      W independent gradients of that norm has norm ``clip``. (Under a sharded host, per share of a parameter.)
    - ``warmup`` steps in ``stages`` equal stages, stage e of density ratio**((e + 1)/(stages + 1)): for 0.001 and 5,
      0.316, 0.1, 0.0316, 0.01, 0.00316. The compressor must have a ``ratio``. Count in steps: of four epochs or so.

    Parameters that travel exact have momentum too: u crosses the wire, and there is no v. So ``out`` is a velocity, not
    the mean gradient: clipping by norm after the hook means something else here; use ``clip``.

    Optimizer: SGD without momentum, weight decay and learning rate as ever (decay then acts without momentum). Hand it
    to ``attach(..., optimizer=)``, which refuses one that has momentum. In ``Warmup(n, DGC(...))``, or while
    ``attachment.enabled`` is False, steps are plain SGD, as no momentum is seen: use ``warmup=``.

    Learning rate: v is still to be applied and is rescaled with it, see ``rescale_error``; u averages gradients and
    is not. While the rate is constant, scaling does not matter.

    A bad step is not sent: v takes back what it gave, u keeps the finite part and is not masked (parameters that travel
    exact miss one velocity). A parameter whose gradient is zero on every rank rests: u and v stay, as in an optimizer
    that is given no gradient.

    State: "momentum" u, MEAN, one per element; "velocity" v, MEAN and pending, one per element that does not travel
    exact; fp32. One pass over memory more than ``ErrorFeedback`` (with ``clip`` two, with ``nesterov`` three).

    Source: Lin, Han, Mao, Wang, Dally 2018 (arXiv:1712.01887), Algorithm 4 and sections 3.1 to 3.3; Nesterov's form,
    the densities and that exact parameters have momentum are those of their program. They clip by all of a rank's
    gradients at once, which would have to wait for the last bucket; their sampled selection is ``TopK(select=
    "sampled")``; their weight decay has a momentum buffer of its own.
    """

    momentum: float = 0.9
    nesterov: bool = False
    clip: float | None = None
    masking: bool = True
    warmup: int = 0
    stages: int = 5

    owner = ErrorFeedback
    absorbs = "velocity"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.momentum) or not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"DGC(momentum={self.momentum!r}): the share of u that is kept, in [0, 1); 0.9 as a rule.")
        if self.clip is not None and (not is_number(self.clip) or not 0.0 < self.clip < float("inf")):
            raise ValueError(f"DGC(clip={self.clip!r}): the largest L2 norm, above 0; None does not clip.")
        for name in ("nesterov", "masking"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"DGC({name}={getattr(self, name)!r}): True or False.")
        if not is_integer(self.warmup) or self.warmup < 0:
            raise ValueError(f"DGC(warmup={self.warmup!r}): the number of steps of rising sparsity, 0 or more.")
        if not is_integer(self.stages) or self.stages < 1:
            raise ValueError(f"DGC(stages={self.stages!r}): the number of densities before the last, 1 or more.")
        c = _compressor(self.reducer)
        if self.masking and c is not None and not c.sparse:
            raise ValueError(
                f"DGC({c!r}): it sends every element, and masking takes the momentum of what is sent, so none would "
                f"ever be left. Use masking=False, or a compressor that selects, such as TopK(0.01)."
            )
        if self.warmup:
            refuse_inner(f"DGC(warmup={self.warmup})", self.reducer)
            self._thinned(0)

    def memory(self, segment: Segment) -> Mapping[str, Slot]:
        own = {"momentum": Slot(Merge.MEAN)}
        return own if self.reducer.exact(segment) else {**own, "velocity": Slot(Merge.MEAN, pending=True)}

    @cached_property
    def traits(self) -> Traits:
        return super().traits._replace(accumulates=self.momentum == 0.0)  # else every pass gives a velocity

    def exact(self, segment: Segment) -> bool:
        return False  # what arrives is a velocity, and not the mean gradient

    def check_optimizer(self, groups: Mapping[str, Group | None] | None) -> None:
        if self.momentum == 0.0:
            return
        if groups is None:
            raise ValueError(
                f"{self!r}: its momentum would come on top of the optimizer's. Pass optimizer= to attach (or DDPState) "
                f"so that a second momentum can be ruled out."
            )
        for name, group in groups.items():
            if group is None:
                raise ValueError(
                    f"{self!r}: optimizer= does not step {name!r}. Give the optimizer of this model, or a tuple of all "
                    f"that step its parameters."
                )
            betas: Any = group.options.get("betas", (0.0,))
            for what, value in (("momentum", group.options.get("momentum", 0.0)), ("betas[0]", betas[0])):
                if value != 0:
                    raise ValueError(
                        f"{self!r}: {group.optimizer} has {what}={value} in parameter group {group.number} (with "
                        f"{name!r}), a second momentum on top of DGC's {self.momentum}. Set it to 0 there."
                    )

    def density(self, step: int) -> float:
        """The share of the elements that is sent in a step."""
        ratio = setting("DGC", self.reducer) if field(self.reducer) == "ratio" else None
        if ratio is None:
            raise ValueError(
                f"{self!r}: the densities of warm-up are powers of the compressor's ratio, and it has none. Use "
                f"TopK(ratio=0.001), or warmup=0."
            )
        if step >= self.warmup:
            return ratio
        return ratio ** ((step * self.stages // self.warmup + 1) / (self.stages + 1))

    def _thinned(self, step: int) -> Any:
        """What is inside, at the density of a warm-up step."""
        density = self.density(step)
        try:
            return tuned(self.reducer, density)
        except ValueError as error:
            raise ValueError(f"{self!r}: its compressor has no form of density {density:.3g}: {error}") from None

    def step(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        u, v, x, scale = state["momentum"], state["velocity"], source.x, source.decay
        if x.flat.dtype != torch.float32:
            raise TypeError(f"{self!r}: gradients are {x.flat.dtype} here, and its memory is float32. Convert them.")
        x = Bucket(x.flat, slabs.filled(x.layout))  # segments are now numbered as in u
        status, discarded = slabs.zero_status(ctx, u.layout), slabs.zero_status(ctx, u.layout, "discarded")
        taken = self._scales(x, scale, ctx)
        if self.nesterov:
            slabs.axpby(x, x, status, beta=taken)
            slabs.axpby(u, x, discarded, alpha=self.momentum, beta=self.momentum)
            slabs.axpby(x, u, discarded, alpha=1.0)
        else:
            slabs.axpby(u, x, status, alpha=self.momentum, beta=taken)
        velocity = x if self.nesterov else u
        ctx.status = status
        inner: Reducer = self._thinned(ctx.step) if ctx.step < self.warmup else self.inner
        result = yield from inner.reduce(Source(v, velocity), target, state, ctx)
        self._rest(u, v, result.unused)

        def on_rollback() -> None:
            result.on_rollback()
            if result.sent is not None:
                result.sent.add_(v)
            u.flat.nan_to_num_(0.0, 0.0, 0.0)  # finite gradients may add up to an infinity, which would stay

        def on_commit() -> None:
            result.on_commit()
            if self.masking and result.sent is not None:
                result.sent.zero_(Bucket(u.flat, slabs.shared(u.layout, v.layout)))

        return Reduced(result.sent, on_rollback=on_rollback, on_commit=on_commit, bad=result.bad, unused=result.unused)

    def _scales(self, x: Bucket, scale: float, ctx: Context) -> float | Tensor:
        """What the gradients are multiplied by: one number, or one per segment where they are clipped."""
        if self.clip is None or x.flat.is_meta:
            return scale
        limit = self.clip * ctx.world**-0.5
        return slabs.norms(x, ctx).mul_(scale).reciprocal_().mul_(limit).clamp_(max=1.0).mul_(scale).float()

    def _rest(self, u: Bucket, v: Bucket, dead: Tensor | None) -> None:
        """Takes back what momentum did to parameters without a gradient on any rank; the route gave v theirs back."""
        if self.momentum > 0.0:
            slabs.axpby_masked(v, u, u.layout, dead, alpha=1.0, beta=-1.0)
            slabs.axpby_masked(u, u, u.layout, dead, alpha=1.0 / self.momentum, beta=0.0)


def _compressor(part: object) -> Compressor | None:
    """The outermost within, or the compressor itself."""
    while part is not None and not isinstance(part, Compressor):
        part = getattr(part, "compressor", None) or getattr(part, "reducer", None)
    return part
