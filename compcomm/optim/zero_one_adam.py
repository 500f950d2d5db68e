"""ZeroOneAdam: Adam whose variance is refreshed ever more rarely, and that then synchronises ever more rarely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..compressors.sign import SignScale
from ..core.compressor import Compressor, ops
from ..core.reducer import Reducer
from ..core.state import StateError
from ..engine.agreement import agree
from ..engine.statistics import Report
from ..routes.exact import Exact
from . import foreach
from .flat import Batch, Part
from .freeze import Freeze
from .intervals import check_count, synchronises
from .local_steps import LocalSteps, check_local
from .refreshed_variance import RefreshedVariance
from .variance import check_floor, check_moments, divisor, factor, thaw


class ZeroOneAdam(RefreshedVariance):
    """``optimizer = cc.optim.ZeroOneAdam(ddp_model, lr=1e-3, freeze=20_000)`` in place of ``torch.optim.Adam(...)``.

    Gradients g_i stay local in the backward pass; all that is averaged is averaged in ``step``. Until the freeze:

        g <- mean of g_i, by ``warmup`` in a refresh, else compressed;  in a refresh v <- b2 v + (1 - b2) g^2
        m <- b1 m + (1 - b1) g;  x <- x - lr (m/d + decay x),  d = sqrt v + eps

    Step t is a refresh where the interval divides t. The interval is 1, and doubles after every k =
    ``var_update_scaler`` refreshes: about k log2(1 + T/k) of them in T steps. After ``freeze`` steps d stays as it is,
    what was not sent is forgotten (it was gradient, and will be momentum), and rank i goes on alone, without any
    message, not even of flags (under a ``GradScaler`` and DDP of one byte: see "Bad gradients"):

        m_i <- b1 m_i + (1 - b1) g_i;  x_i <- x_i - lr (m_i/d + decay x_i)
        P <- P (1 - lr decay);  u_i <- u_i + (lr/P) m_i;  s <- s + lr/P          (P = 1, u = s = 0 at first)

    so that x_i = P (x_sync - u_i/d) always. After a step in which the ranks synchronise

        m <- mean of u_i/s, compressed;  x <- P (x_sync - s m/d);  P, u, s begin anew

    m and x are then bit-identical on all ranks. (Where all rates were 0, m_i travels for u_i/s.) Step k after the
    freeze synchronises where the interval divides k; it is 1, and doubles every ``local_step_scaler`` steps, up to
    ``local_step_clipper``.

    Compressed means are as ``OneBitAdam``'s: ``ErrorFeedback(compressor)`` by the route that fits the number of ranks,
    flat vectors in buckets of 16 MiB, pipelined. Invariant: sum of m + mean residual + owners' residuals = sum of
    mean u_i/s; before the freeze, the same of compressed g and g_i.

    Volume, bits per parameter and step with the defaults: a refresh 32 (``Cast(torch.bfloat16)``: 16), other steps
    before the freeze 1.06, then 1.06 / interval: 0.066 with 16 steps, in 1/16 of the rounds. 1-D and small parameters
    travel exact. Before the freeze each step also has a message of a byte per parameter tensor, after it each
    synchronisation under DDP one of a byte.

    Args:
        model_or_params: a DDP model (its one hook is taken), a model, parameters, or groups.
        lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``, per group if wanted.
        freeze: steps before the variance is frozen, with the learning rate at its height by then: the freeze waits
            while it rises. A number beyond the end of the run: the ranks never part.
        var_update_scaler: refreshes before their interval doubles.
        local_step_scaler: steps after the freeze before the interval between synchronisations doubles.
        local_step_clipper: the longest interval; 1: every step synchronises.
        v_floor: see ``OneBitAdam``. Here it is at work once gradients are compressed, and not at the freeze alone:
            sqrt(v) is raised in d, v stays as measured. An MLP on handwritten digits is at chance or NaN with 0 (the
            published formula), goes astray for 500 steps with 0.001, and follows Adam with 0.01 to 0.3.
        bias_correction: divide m by 1 - b1^t and v by 1 - b2^r, r the refreshes so far. The published code does not
            (default): while r is small against 1/(1 - b2), steps are larger than Adam's, by 1/sqrt(1 - b2^r).
        compressor, params, group, timeout, seed: see ``OneBitAdam``.
        warmup: how gradients are averaged in a refresh: ``Exact()``, or ``Cast(torch.bfloat16)``, half of its bytes.
            Nothing that keeps a residual.
        decoupled_weight_decay: decay as above. False: decay * x is added to the gradient, as in ``torch.optim.Adam``.
        maximize: as in ``torch.optim.Adam``. ``foreach`` and ``fused`` are taken and mean nothing.

    Between synchronisations (``local_steps`` > 0) every rank has parameters of its own. ``synchronise()`` makes them
    equal, before an evaluation, say; else each rank saves its own model beside ``state_dict()``, and loads it after
    ``DDP(...)``, which hands out rank 0's. What else changes parameters in between is lost with the synchronisation.

    Bad gradients: before the freeze all ranks skip the step. After it a rank leaves out its own step, nothing of it
    changes, and it synchronises with the others; under DDP and a ``GradScaler``, all ranks leave it out, since all
    scalers must hear of it: they keep one scale. One that begins or ends after the freeze is known to all ranks from
    the next synchronisation on, which has a byte for it. Missing ones: before the freeze parameters without a gradient
    on any rank are passed over; after it a missing gradient is zero.

    Clipping: ``clip_grad_norm_`` sees each rank's own gradient at all times, and each rank clips by its own norm.
    Learning rates may change at any time: what is kept is momentum, not steps. ``add_param_group`` before the freeze:
    residuals begin anew.

    Raises:
        TypeError, ValueError: an argument cannot be; ``amsgrad``; sharded or sparse parameters; a DDP model with
            another hook. ``AgreementError`` where the ranks differ.

    State, bytes per element: m 4, v 4 (after the freeze u in its place), d 4, the gradient or momentum under way 4 and
    the residual 4 (and 4 per element owned); where intervals are longer than 1, x_sync as the parameters are (4; bf16
    2). The rest is fp32 whatever the parameters are.

    Source: Lu et al. 2022 (arXiv:2202.06009), Algorithm 1, and its published code for what that leaves open. There,
    u travels, and m is u/s: the same while rates and intervals stay. But what was not sent are then steps: where the
    rate falls and rises again, as in cosine restarts, they make m, and the model, explode. There, decay is a part of u,
    and so of m, which makes it decay/(1 - b1): here P carries it. There, x_sync is what is left when the local steps
    are subtracted, so that replicas part by rounding: here it is kept. There, the interval divides the number of all
    steps, not of those since the freeze, and ``local_step_scaler`` is 32678 (1000 in its example).
    """

    OWN = ("local exp_avg", "local update", "anchor")

    def __init__(
        self,
        model_or_params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        freeze: int,
        var_update_scaler: int = 16,
        local_step_scaler: int = 1000,
        local_step_clipper: int = 16,
        v_floor: float = 0.1,
        bias_correction: bool = False,
        compressor: Compressor | Reducer = SignScale(),  # noqa: B008  (frozen)
        warmup: Compressor | Reducer = Exact(),  # noqa: B008  (frozen)
        params: Any = None,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        group: dist.ProcessGroup | None = None,
        timeout: timedelta | float | None = None,
        seed: int = 0,
    ) -> None:
        self.frozen_at: int | None = None
        """The step after which the variance was frozen; None before."""
        self.steps = 0
        """Steps that counted: before the freeze bad ones do not, after it all do."""
        self.refreshes = 0
        """Steps in which the variance was measured."""
        self.v_floor, self.bias_correction = v_floor, bias_correction
        self.var_update_scaler, self.local_step_scaler = var_update_scaler, local_step_scaler
        self.local_step_clipper = local_step_clipper
        facts = {
            "freeze": freeze, "var_update_scaler": var_update_scaler, "local_step_scaler": local_step_scaler,
            "local_step_clipper": local_step_clipper,
        }  # fmt: skip
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay,
        }  # fmt: skip

        def check() -> None:
            for name, value in facts.items():
                check_count(name, value)
            check_floor("ZeroOneAdam", v_floor)

        super().__init__(
            model_or_params, defaults, params=params, compressor=compressor, warmup=warmup, group=group,
            timeout=timeout, seed=seed, ddp_averages=False, check=check,
            facts={**facts, "v_floor": v_floor, "bias_correction": bias_correction},
        )  # fmt: skip
        self._freeze = Freeze(freeze, 0.0)
        self._mean, self._square, self._denominator = (self.flat.zeros() for _ in range(3))
        self._update = self.flat.nothing  # after the freeze, where the variance was
        self._local = LocalSteps(len(self.param_groups))
        self._counted_from = 0

    @property
    def compressed(self) -> bool:
        return self.frozen_at is not None

    @property
    def local_steps(self) -> int:
        """Steps that this rank is away from the last synchronisation; 0: all ranks have the same parameters."""
        return self._local.count

    @property
    def _alike(self) -> bool:
        return self.local_steps == 0

    def synchronise(self) -> None:
        """Makes the parameters of all ranks equal, where they are not, by a synchronisation ahead of time. Collective:
        every rank calls it between the same two steps. Parameters change where ``local_steps`` > 0.

        Raises:
            AgreementError: the ranks are not at the same step.
        """
        if self.exchange is not None:
            agree(self.exchange.transport, {"steps": self.steps}, None, "synchronise")
        if self.local_steps:
            with torch.no_grad():
                self._synchronise()

    def portable_state_dict(self) -> dict[str, Any]:
        """State for any number of ranks: what ranks failed to send is merged. Collective: every rank calls it, between
        the same two steps, and gets the same. It begins with ``synchronise()``, so save the model after it."""
        self.synchronise()
        return super().portable_state_dict()

    def report(self) -> Report:
        """What the present phase sent and cost, per step, local steps among them."""
        used = [e.report() for e in (self.exchange, self.dense) if e is not None]
        if not used:
            return super().report()
        steps = self.steps - self._counted_from

        def per_step(name: str) -> float:
            return sum(getattr(r, name) * r.steps for r in used) / max(1, steps)

        return replace(
            used[0], steps=steps, bytes_sent=per_step("bytes_sent"), kernel_seconds=per_step("kernel_seconds"),
            wire_seconds=per_step("wire_seconds"), exposed_seconds=per_step("exposed_seconds"),
        )  # fmt: skip

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if self._decay(group)[0] >= 1.0:
            raise ValueError(
                f"ZeroOneAdam(weight_decay={group['weight_decay']!r}): at lr={group['lr']!r} a step takes the whole "
                f"parameter away. Give a decay below 1/lr."
            )

    def _advance(self, scale: float, bad: bool) -> bool:
        if self.compressed:
            return self._local_step(scale, bad)
        if not self._warmup_step(scale, bad):
            return False
        if self._ends(self._square):
            self._freeze_variance()
        return True

    def _freeze_variance(self) -> None:
        """The freeze."""
        self._measure()
        self.frozen_at = self.steps
        self._update, self._square = self._square.zero_(), self.flat.nothing
        if self.exchange is not None:
            self.exchange.reset_state()
            self._announce(
                f"variance frozen after {self.steps} steps, {self.refreshes} of them refreshes; {self._line()}, every "
                f"1 to {self.local_step_clipper} steps"
            )
        self._stop_gradient_averaging()
        self._count()

    # After it: steps that are gathered, and travel together.

    def _local_step(self, scale: float, bad: bool) -> bool:
        """A step; False: nothing of this rank is in it."""
        new = self._room()
        status = self._begin_flags(bad)
        self._momentum(self._mean, new, scale, status)
        good = not bool(status)
        self.steps += 1
        due = synchronises(self.steps - (self.frozen_at or 0), self.local_step_scaler, self.local_step_clipper)
        if not due:
            self._local.leave(self.flat.params)
        for part in self.flat.parts:
            group = self.param_groups[part.group]
            weight = self._local.weigh(part.group, self._rate(group), self._decay(group)[0])
            if good and part.params:
                span = _span(part)
                self._update[span].add_(new[span], alpha=weight)
                if not due:  # else the step is made from x_sync
                    self._descend(part, new)
        if good:
            self._mean, self._spare = new, self._mean
        if due:
            self._share_scaled()
            self._synchronise()
        return good

    def _synchronise(self) -> None:
        mean = self._update
        for part in self.flat.parts:
            if part.params:
                span, s = _span(part), self._local.travelled[part.group]
                if s > 0.0:
                    mean[span].mul_(1.0 / s)
                else:  # no step weighs the momenta: the last one then
                    mean[span].copy_(self._mean[span])

        def arrived(batch: Batch) -> None:
            for part in batch.parts:
                s, shrunk = self._local.travelled[part.group], self._local.shrunk[part.group]
                if self.local_steps:
                    foreach.copy(part.params, [self._local.anchor[n] for n in part.numbers])
                params = part.lying(part.params)
                ops.descend(params, part.starts, mean, self._denominator, shrunk * s, 1.0 - shrunk)

        self._average(self.exchange, mean, arrived)
        self._mean, self._update = mean, self._mean.zero_()
        self._local.begin(len(self.param_groups))

    def _count(self) -> None:
        """What is reported per step begins anew."""
        self._counted_from = self.steps
        if self.exchange is not None:
            self.exchange.resume(self.exchange.step)

    # Checkpoints.

    def vectors(self) -> dict[str, Tensor]:
        if not self.compressed:
            return {"exp_avg": self._mean, "exp_avg_sq": self._square}
        variance = thaw(self.flat, self._denominator, self._factors())
        mean = {} if self.local_steps else {"exp_avg": self._mean}
        return {"exp_avg_sq": variance, "denominator": self._denominator, **mean}

    def _factors(self) -> list[tuple[float, float]]:
        """(factor, eps) of each group, for ``thaw``."""
        return [
            (factor(float(g["betas"][1]), self.refreshes, self.steps, self._correction(g)), float(g["eps"]))
            for g in self.param_groups
        ]

    def own(self) -> dict[str, list[Tensor]]:
        if not self.local_steps:
            return {}
        mean, update = self.flat.views(self._mean), self.flat.views(self._update)
        return dict(zip(self.OWN, (mean, update, self._local.anchor), strict=True))

    def extra(self) -> dict[str, Any]:
        return {
            "steps": self.steps, "refreshes": self.refreshes, "frozen_at": self.frozen_at,
            "warmup": self._freeze.state_dict(), "scaled": self.compressed and self._scaled,
            "local": self._local.extra(),
        }  # fmt: skip

    def check_extra(
        self, extra: Mapping[str, Any], vectors: Mapping[str, Tensor], own: Mapping[str, Sequence[Any]]
    ) -> None:
        steps, refreshes, frozen, warmup, local = (
            extra.get(name) for name in ("steps", "refreshes", "frozen_at", "warmup", "local")
        )
        numbers = isinstance(steps, int) and isinstance(refreshes, int) and isinstance(frozen, int | None)
        if not numbers or not isinstance(warmup, Mapping) or not isinstance(local, Mapping | None):
            raise StateError(
                f"load_state_dict: steps={steps!r}, refreshes={refreshes!r}, frozen_at={frozen!r}: the checkpoint is "
                f"damaged. Use an older one."
            )
        check_moments(vectors, frozen, [] if local else ["exp_avg"])
        Freeze(1, 0.0).load_state_dict(warmup)
        if local is not None:
            tensors = {name: own.get(name, ()) for name in self.OWN}
            check_local(local, tensors, self.flat.params, len(self.param_groups))

    def load(self, vectors: dict[str, Tensor], own: Mapping[str, list[Tensor]], extra: Mapping[str, Any]) -> None:
        was, local = self.compressed, extra["local"]
        self.steps, self.refreshes, self.frozen_at = extra["steps"], extra["refreshes"], extra["frozen_at"]
        self._freeze.load_state_dict(extra["warmup"])
        self._mean = vectors["exp_avg"] if local is None else self.flat.zeros()
        self._update = self.flat.zeros() if self.compressed else self.flat.nothing
        if self.compressed:
            found = vectors.get("denominator")
            self._square = self.flat.nothing
            self._denominator = divisor(self.flat, vectors["exp_avg_sq"], self._factors()) if found is None else found
        else:
            self._square, self._denominator = vectors["exp_avg_sq"], self.flat.zeros()
            self._measure()
        self._local = LocalSteps(len(self.param_groups))
        if local is not None:
            mean, update, anchor = (own[name] for name in self.OWN)
            foreach.copy(self.flat.views(self._mean), mean)
            foreach.copy(self.flat.views(self._update), update)
            self._local.load(local, anchor, self.flat.params)
        self._go_on(was, extra["averaged"])
        if self.compressed:
            self._watch(bool(extra.get("scaled")))
        self._count()

    def absorb(self, residual: Tensor) -> None:
        for part in self.flat.parts:
            if part.params:  # the next m is b1 m + ..., so that the residual arrives there as if it had been sent
                span, beta = _span(part), float(self.param_groups[part.group]["betas"][0])
                weight = 1.0 if self.compressed else 1.0 - beta
                self._mean[span].add_(residual[span], alpha=weight / beta if beta else 0.0)


def _span(part: Part) -> slice:
    """The elements of a whole group: its parameters lie end to end."""
    return slice(part.starts[0], part.starts[-1] + part.params[-1].numel())
