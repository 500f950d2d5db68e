"""OneBitLamb: LAMB until its variance is known, then momentum SGD preconditioned by it, with coded momentum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from math import fsum, sqrt
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..compressors.sign import SignScale
from ..core.compressor import Compressor, ops
from ..core.reducer import Reducer
from ..core.state import StateError
from ..routes.exact import Exact
from . import foreach
from .flat import Batch
from .frozen_variance import FrozenVariance
from .trust import Bounds, Trust, check_numbers
from .workspace import Workspace, workspaces

SCALE = 2.0**20
"""Momentum is scaled by no more than this before it travels, and by no less than its inverse."""


class OneBitLamb(FrozenVariance):
    """``optimizer = cc.optim.OneBitLamb(ddp_model, lr=4e-3, weight_decay=0.01)`` in place of a LAMB.

    Warm-up, g the mean gradient (averaged by DDP's backward pass through ``warmup``, or in ``step``), for each
    parameter x, of any shape:

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  r = m/(sqrt v + eps) + decay x
        c = |x|/|r| within [min_coeff, max_coeff], 1 where a norm is 0;  x <- x - lr c r
        C <- b_c C + (1 - b_c) c where c is not 1; C begins with the first such c

    After ``freeze`` steps d = max(sqrt v, floor) + eps and C stay as they are, w = v, phi = 1, and with rms(m) the root
    mean square over a parameter, s = (mean of rms(m) over the parameters)/rms(m). Then in each step

        m_i <- b1 m + (1 - b1) g_i on rank i;  m' <- (mean of s m_i, compressed)/s;  h = (m' - b1 m)/(1 - b1);  m <- m'
        w <- max(b2 w, floor^2) + (1 - b2) h^2;  r = m/d + decay x
        phi <- rho max(d/(sqrt w + eps)) + 1 - rho, rho = min(1, |m/d|/|r|), within [factor_min, factor_max] and
               within ``factor_threshold`` of the phi before it, as a part of that
        x <- x - lr C phi r

    The mean is ``ErrorFeedback(compressor)`` of one flat vector, by the routes and in the buckets of ``OneBitAdam``:
    with ``SignScale()`` 1.06 bits per element. Residuals are of s m. Invariant: sum of s m + mean residual + owners'
    residuals = sum of mean s m_i. m, c and x are bit-identical on all ranks: norms are summed in fp64 by one fixed
    tree, whatever the number of threads.

    Args:
        model_or_params: a DDP model (its one hook is taken), a model, parameters, or groups. A group with
            ``adapt=False``, as for biases and norms, has c = 1: it is under Adam. So is what DDP ignores.
        lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``, per group if wanted; decay is part of r.
        freeze: as in ``OneBitAdam``; at least 1/(1 - coeff_beta) steps, or C is the mean of fewer ratios.
        max_coeff, min_coeff: the limits of c in the warm-up, per group if wanted. (BERT: 0.3 and 0.01.)
        coeff_beta: b_c.
        factor_max, factor_min, factor_threshold: the limits of phi. What is reconstructed of the gradient has the noise
            of the compressor times 1/(1 - b1).
        v_floor: as in ``OneBitAdam``: floor is ``v_floor`` times the root mean square of sqrt(v) over the parameter,
            or, where v is all zero, the root mean square over all parameters. On the same digits (lr 0.01, one seed)
            NaN with 0 and 0.001, and no worse than LAMB with 0.01 to 0.3. It also bounds w: an element that never has a
            gradient has d/(sqrt w + eps) = 1, as it has without a floor; floor/eps would be the maximum, and make phi
            ``factor_max``. ``v_floor=0`` is the published formula.
        compressor, warmup, params, group, timeout, seed, maximize, foreach, fused: as in ``OneBitAdam``.

    Clipping and learning rates: as for ``OneBitAdam``.

    Raises:
        TypeError, ValueError: an argument cannot be; ``amsgrad`` (its maximum of v ends with v); sharded or sparse
            parameters; a DDP model with another hook. ``AgreementError`` where the ranks differ.

    State, bytes per element: m 4, v 4, and after the warm-up 4 for w, 4 for the momentum under way and 4 for the
    residual (and 4 per element owned). In fp32 whatever the parameters are; and 8 per element of the longest batch (16
    MiB, or the longest parameter) to compute in. Four numbers per parameter.

    Source: Li et al. 2021 (arXiv:2104.06069), Algorithm 1, and its published code (in DeepSpeed) for what that leaves
    open: no bias correction, C, the limits of phi, its part rho. Where we differ: the floor; C begins there with 0, so
    that it is too small by b_c^freeze, and a parameter whose c was always 1 stops at the freeze; s is at most 2^20 and
    at least 2^-20, and 1 where rms(m) is 0, where it is infinite there.
    """

    KEPT = ("warmup", "trust")

    def __init__(
        self,
        model_or_params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        freeze: int | str = "auto",
        max_coeff: float = 10.0,
        min_coeff: float = 0.01,
        coeff_beta: float = 0.9,
        factor_max: float = 4.0,
        factor_min: float = 0.5,
        factor_threshold: float = 0.1,
        v_floor: float = 0.1,
        compressor: Compressor | Reducer = SignScale(),  # noqa: B008  (frozen)
        warmup: Compressor | Reducer = Exact(),  # noqa: B008  (frozen)
        params: Any = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        group: dist.ProcessGroup | None = None,
        timeout: timedelta | float | None = None,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "max_coeff": max_coeff, "min_coeff": min_coeff, "adapt": True,
        }  # fmt: skip
        super().__init__(
            model_or_params, defaults, freeze=freeze, v_floor=v_floor,
            facts={
                "coeff_beta": coeff_beta, "factor_max": factor_max, "factor_min": factor_min,
                "factor_threshold": factor_threshold,
            },
            check=lambda: check_factors(coeff_beta, factor_max, factor_min, factor_threshold),
            params=params, compressor=compressor, warmup=warmup, group=group, timeout=timeout, seed=seed,
        )  # fmt: skip
        self._bounds, self._coeff_beta = Bounds(*map(float, (factor_min, factor_max, factor_threshold))), coeff_beta
        self._fresh = self.flat.nothing
        self._floor: list[float] = []
        self._scaling: list[float] = []
        self._fit()

    @property
    def coefficients(self) -> dict[str, float]:
        """The c of each parameter in the last step, by its name; 1 before the first."""
        return {name: c for (name, _), c in zip(self.flat.named, self._trust.last, strict=True)}

    def _fit(self) -> None:
        """Makes what depends on the plan of the flat vectors."""
        self._workspaces = {workspace.numbers[0]: workspace for workspace in workspaces(self.flat)}
        self._trust = Trust(len(self.flat.params), self._coeff_beta, self._bounds)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        low, high = float(group["min_coeff"]), float(group["max_coeff"])
        if not 0.0 < low <= high < float("inf"):
            raise ValueError(
                f"OneBitLamb(min_coeff={group['min_coeff']!r}, max_coeff={group['max_coeff']!r}): two numbers, more "
                f"than 0, the smaller one first, such as 0.01 and 10."
            )
        if not float(group["betas"][1]):
            raise ValueError(
                f"OneBitLamb(betas={group['betas']!r}): b2 = 0 keeps no variance. Give more, such as 0.999."
            )
        if not isinstance(group["adapt"], bool):
            raise ValueError(f"OneBitLamb(adapt={group['adapt']!r}): True, or False for c = 1.")

    def _decay(self, group: Mapping[str, Any]) -> tuple[float, float]:
        return 0.0, 0.0  # decay is part of r

    def _rates(self, group: Mapping[str, Any], step: int) -> tuple[float, float, float, float]:
        rate = float(group["lr"])
        return rate, 1.0, rate * float(group["weight_decay"]), 0.0

    def _options(self, name: str, numbers: Sequence[int]) -> list[Any]:
        return [self.param_groups[self.flat.owners[n]][name] for n in numbers]

    def _descend(
        self, workspace: Workspace, numbers: Sequence[int], updates: Sequence[Tensor], c: Sequence[float]
    ) -> None:
        """x <- x - lr c r. Of a product and a sum each is rounded by itself, so that nothing depends on threads."""
        if not numbers:
            return
        rates = map(float, self._options("lr", numbers))
        moves = [updates[n - workspace.numbers[0]] for n in numbers]
        foreach.multiply(moves, [-lr * k for lr, k in zip(rates, c, strict=True)])
        foreach.add([self.flat.params[n] for n in numbers], moves)

    def _decayed(self, workspace: Workspace, weights: Sequence[Tensor]) -> None:
        """x <- decay x, in a workspace's ``weights``."""
        foreach.multiply(list(weights), [float(d) for d in self._options("weight_decay", workspace.numbers)])

    # The warm-up: LAMB.

    def _adapt(self, has_gradient: list[bool], mean: Tensor | None, scale: float) -> None:
        self._average(
            self.dense, self._mean if mean is None else mean, lambda b: self._lamb(b, has_gradient, mean, scale)
        )

    def _lamb(self, batch: Batch, has_gradient: list[bool], mean: Tensor | None, scale: float) -> None:
        """``mean``: a flat vector with the averaged gradients; None: they are in the parameters."""
        workspace = self._workspaces[batch.parts[0].numbers[0]]
        first, numbers = workspace.numbers[0], workspace.numbers
        updates = workspace.twos
        foreach.copy(updates, self.flat.params[first : numbers.stop])
        weights = workspace.norms(workspace.two)
        self._decayed(workspace, updates)
        for part in batch.parts:
            part = part.pick(has_gradient)
            if part.params:
                group = self.param_groups[part.group]
                grads = self._grads(part) if mean is None else self._found(part, mean)
                sign = -scale if group["maximize"] and mean is None else scale
                b1, b2 = map(float, group["betas"])
                # Adam with r in the place of the parameters, and a rate of -1: decay x becomes r
                ops.adam(
                    part.lying([updates[n - first] for n in part.numbers]), grads, part.starts,
                    self._mean, self._second, b1, b2, sign, -1.0, 1.0, float(group["eps"]), 0.0, 0.0,
                )  # fmt: skip
        moving = [n for n in numbers if has_gradient[n]]
        norms, c = workspace.norms(workspace.two), list[float]()
        for n in moving:
            group = self.param_groups[self.flat.owners[n]]
            limits = float(group["min_coeff"]), float(group["max_coeff"])
            i = n - first
            c.append(self._trust.measure(n, weights[i], norms[i], limits) if group["adapt"] else 1.0)
        self._descend(workspace, moving, updates, c)

    def _freeze_variance(self) -> list[float]:
        self._fresh = self._second.clone()
        self._scaling = self._scales()
        self._floor = super()._freeze_variance()
        self._trust.end()
        return self._floor

    def _scales(self) -> list[float]:
        """s of all parameters."""
        norms = torch.zeros(len(self.flat.params), dtype=torch.float64, device=self.flat.device)
        ops.norms(self._mean, self.flat.table(), norms)
        sizes = [max(1, p.numel()) for p in self.flat.params]
        rms = [norm / sqrt(size) for norm, size in zip(norms.tolist(), sizes, strict=True)]
        mean = fsum(rms) / max(1, len(rms))
        return [min(max(mean / r, 1.0 / SCALE), SCALE) if r else 1.0 for r in rms]

    # After it: momentum that travels.

    def _departs(self, new: Tensor) -> None:
        if self.exchange is not None:
            foreach.multiply(self.flat.views(new), self._scaling)

    def _arrived(self, batch: Batch, has_gradient: list[bool], new: Tensor) -> None:
        workspace = self._workspaces[batch.parts[0].numbers[0]]
        first, numbers = workspace.numbers[0], workspace.numbers
        moving = [n for n in numbers if has_gradient[n] and self.flat.params[n].numel()]
        if self.exchange is not None:
            foreach.divide(workspace.cut(new), self._scaling[first : numbers.stop])
        factors = self._factors(workspace, moving, new)
        torch.div(new[workspace.span], self._second[workspace.span], out=workspace.one)
        shares = [1.0] * len(numbers)
        if any(self._options("weight_decay", moving)):
            parts = workspace.norms(workspace.one)
            foreach.copy(workspace.twos, self.flat.params[first : numbers.stop])
            self._decayed(workspace, workspace.twos)
            workspace.one.add_(workspace.two)
            wholes = workspace.norms(workspace.one)
            shares = [min(1.0, part / whole) if whole else 1.0 for part, whole in zip(parts, wholes, strict=True)]
        c = [
            self._trust.correct(n, factor, shares[n - first]) if adapt else 1.0
            for n, factor, adapt in zip(moving, factors, self._options("adapt", moving), strict=True)
        ]
        self._descend(workspace, moving, workspace.ones, c)

    def _factors(self, workspace: Workspace, moving: Sequence[int], new: Tensor) -> list[float]:
        """Brings w up to date, and returns max(d/(sqrt w + eps)) over each of these parameters."""
        fresh, second = self._fresh[workspace.span], self._second[workspace.span]
        unread = self._flags.unread
        momenta, variances = workspace.cut(new), workspace.cut(self._fresh)
        gradients, ratios = workspace.one.split(workspace.sizes), workspace.two.split(workspace.sizes)
        first, chosen = workspace.numbers[0], set(moving)
        workspace.two.zero_()
        for part in workspace.batch.parts:
            rows = [n - first for n in part.numbers if n in chosen]
            if not rows:
                continue
            group = self.param_groups[part.group]
            b1, b2 = map(float, group["betas"])
            starts = [self.flat.starts[first + i] - workspace.batch.start for i in rows]
            given, found = [momenta[i] for i in rows], [gradients[i] for i in rows]
            # h = (m' - b1 m)/(1 - b1) is a momentum whose beta is -b1/(1 - b1)
            ops.momentum(
                given, given, starts, self._mean[workspace.span], workspace.one, -b1 / (1.0 - b1), 1.0, 0.0, unread
            )
            if self.v_floor:
                least = [self._floor[first + i] ** 2 / b2 for i in rows]
                foreach.raise_to([variances[i] for i in rows], least)
            # Adam with d for a momentum that stays as it is, and a rate of -1: 0 becomes d/(sqrt w + eps)
            ops.adam(
                [ratios[i] for i in rows], found, starts, second, fresh,
                1.0, b2, 1.0, -1.0, 1.0, float(group["eps"]), 0.0, 0.0,
            )  # fmt: skip
        return foreach.largest([ratios[n - first] for n in moving])

    # Checkpoints.

    def vectors(self) -> dict[str, Tensor]:
        if not self.compressed:
            return {"exp_avg": self._mean, "exp_avg_sq": self._second}
        return {"exp_avg": self._mean, "exp_avg_sq": self._fresh, "denominator": self._second}

    def extra(self) -> dict[str, Any]:
        numbers = {"trust": self._trust.state_dict(), "floor": list(self._floor), "scaling": list(self._scaling)}
        return {**super().extra(), **numbers}

    def check_extra(
        self, extra: Mapping[str, Any], vectors: Mapping[str, Tensor], own: Mapping[str, Sequence[Any]]
    ) -> None:
        super().check_extra(extra, vectors, own)
        frozen, trust = extra["frozen_at"], extra["trust"]
        count = len(self.flat.params)
        for name in ("mean", "factor"):
            check_numbers(name, trust.get(name), count)
        for name in ("floor", "scaling"):
            check_numbers(name, extra.get(name), 0 if frozen is None else count)

    def _check_vectors(self, vectors: Mapping[str, Tensor], frozen: int | None) -> None:
        due = [*(["denominator"] if frozen is not None else []), "exp_avg", "exp_avg_sq"]
        if sorted(vectors) != due:
            raise StateError(f"load_state_dict: moments {sorted(vectors)} where {due} are due.")

    def load(self, vectors: dict[str, Tensor], own: Mapping[str, list[Tensor]], extra: Mapping[str, Any]) -> None:
        was = self._take(extra)
        self._fit()
        self._trust.load_state_dict(extra["trust"])
        self._floor, self._scaling = list(extra["floor"]), list(extra["scaling"])
        self._mean = vectors["exp_avg"]
        self._second, self._fresh = vectors["exp_avg_sq"], self.flat.nothing
        if self.compressed:
            self._second, self._fresh = vectors["denominator"], vectors["exp_avg_sq"]
        self._go_on(was, extra["averaged"])

    def absorb(self, residual: Tensor) -> None:
        for n, (group, scale) in enumerate(zip(self.flat.owners, self._scaling, strict=True)):
            beta = float(self.param_groups[group]["betas"][0])  # the next m is b1 m + ...: there it arrives whole
            self.flat.view(self._mean, n).add_(self.flat.view(residual, n), alpha=1.0 / (beta * scale))


def check_factors(beta: float, high: float, low: float, threshold: float) -> None:
    """Raises ValueError for what cannot bound a ratio."""
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"OneBitLamb(coeff_beta={beta!r}): a number in [0, 1), such as 0.9.")
    if not 0.0 < low <= 1.0 <= high < float("inf"):
        raise ValueError(
            f"OneBitLamb(factor_min={low!r}, factor_max={high!r}): the factor begins with 1, so that one is at most 1 "
            f"and the other at least 1, such as 0.5 and 4."
        )
    if not 0.0 <= threshold < 1.0:
        raise ValueError(f"OneBitLamb(factor_threshold={threshold!r}): a part of the last factor, in [0, 1): 0.1.")
