"""What OneBitAdam and OneBitLamb share: a warm-up that measures the variance, then momentum that travels compressed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..core.compressor import Compressor
from ..core.reducer import Reducer
from ..core.state import StateError
from .base import CompressedOptimizer
from .flat import Batch
from .freeze import Freeze, check_rule
from .variance import check_floor, check_moments
from .variance import freeze as freeze_variance


class FrozenVariance(CompressedOptimizer):
    """``_mean`` is m; ``_second`` is v in the warm-up and from the freeze on what a step divides by."""

    KEPT: tuple[str, ...] = ("warmup",)  # what ``extra`` has in dictionaries

    def __init__(
        self,
        given: Any,
        defaults: dict[str, Any],
        *,
        freeze: int | str,
        v_floor: float,
        facts: Mapping[str, Any],
        check: Callable[[], None],
        params: Any,
        compressor: Compressor | Reducer,
        warmup: Compressor | Reducer,
        group: dist.ProcessGroup | None,
        timeout: timedelta | float | None,
        seed: int,
    ) -> None:
        self.frozen_at: int | None = None
        """The step after which the variance was frozen; None during the warm-up."""
        self.steps = 0
        """Steps that counted: bad ones do not."""
        self.v_floor = v_floor
        call = type(self).__name__

        def checks() -> None:
            check_rule(call, freeze)
            check_floor(call, v_floor)
            check()

        super().__init__(
            given, defaults, params=params, compressor=compressor, warmup=warmup, group=group, timeout=timeout,
            seed=seed, ddp_averages=True, check=checks, facts={"freeze": freeze, "v_floor": v_floor, **facts},
        )  # fmt: skip
        self._freeze = Freeze(freeze, max(float(g["betas"][1]) for g in self.param_groups))
        self._mean, self._second = self.flat.zeros(), self.flat.zeros()

    def _adapt(self, has_gradient: list[bool], mean: Tensor | None, scale: float) -> None:
        """The warm-up's arithmetic. ``mean``: a flat vector with this rank's gradients, for ``dense`` to average; None:
        averaged ones are in the parameters, times 1/``scale``."""
        raise NotImplementedError

    def _arrived(self, batch: Batch, has_gradient: list[bool], new: Tensor) -> None:
        """The step of a batch whose mean momentum, in ``new``, is there."""
        raise NotImplementedError

    def _departs(self, new: Tensor) -> None:
        """What momentum is made into before it travels."""

    @property
    def compressed(self) -> bool:
        return self.frozen_at is not None

    def _advance(self, scale: float, bad: bool) -> bool:
        if self.compressed:
            return self._compressed_step(scale, bad)
        if not self._warmup_step(scale, bad):
            return False
        self.steps += 1
        if self._ends(self._second):
            self._freeze_variance()
        return True

    def _warmup_step(self, scale: float, bad: bool) -> bool:
        """A step with averaged gradients; False: it was skipped."""
        mean: Tensor | None = None
        if self.dense is None:  # DDP has averaged them
            has_gradient = None if self._skips(bad) else [p.grad is not None for p in self.flat.params]
        else:
            mean = self._room()
            self._gather(self._mean, mean, scale, self._begin_flags(bad))
            has_gradient = self._has_gradient()
        if has_gradient is None:
            return False
        self._adapt(has_gradient, mean, scale if mean is None else 1.0)
        return True

    def _freeze_variance(self) -> list[float]:
        """The warm-up ends: from here on ``_second`` is what a step divides by. Returns the floor of each parameter."""
        options = [(self._corrected(g, self.steps)[1], float(g["eps"])) for g in self.param_groups]
        floor = freeze_variance(self.flat, self._second, self.v_floor, options)
        self.frozen_at = self.steps
        self._stop_gradient_averaging()
        if self.world > 1:
            self._announce(f"variance frozen after {self.steps} steps; {self._line()}")
        return floor

    def _compressed_step(self, scale: float, bad: bool) -> bool:
        """A step whose momentum travels; False: it was skipped."""
        new = self._room()
        self._momentum(self._mean, new, scale, self._begin_flags(bad))
        has_gradient = self._has_gradient()
        if has_gradient is None:
            return False
        without = [n for n, a in enumerate(has_gradient) if not a]
        for n in without:
            self.flat.view(new, n).zero_()  # sent as nothing, so that their residual stays
        self._departs(new)
        self._average(self.exchange, new, lambda batch: self._arrived(batch, has_gradient, new))
        for n in without:
            self.flat.view(new, n).copy_(self.flat.view(self._mean, n))
        self._mean, self._spare = new, self._mean
        self.steps += 1
        return True

    # Checkpoints.

    def extra(self) -> dict[str, Any]:
        return {"steps": self.steps, "frozen_at": self.frozen_at, "warmup": self._freeze.state_dict()}

    def check_extra(
        self, extra: Mapping[str, Any], vectors: Mapping[str, Tensor], own: Mapping[str, Sequence[Any]]
    ) -> None:
        steps, frozen = extra.get("steps"), extra.get("frozen_at")
        whole = all(isinstance(extra.get(name), Mapping) for name in self.KEPT)
        if not isinstance(steps, int) or not isinstance(frozen, int | None) or not whole:
            raise StateError(
                f"load_state_dict: steps={steps!r}, frozen_at={frozen!r}: the checkpoint is damaged. Use an older one."
            )
        self._check_vectors(vectors, frozen)
        Freeze("auto", 0.9).load_state_dict(extra["warmup"])

    def _check_vectors(self, vectors: Mapping[str, Tensor], frozen: int | None) -> None:
        """Raises StateError where some lack."""
        check_moments(vectors, frozen, ["exp_avg"])

    def _take(self, extra: Mapping[str, Any]) -> bool:
        """Goes on from ``extra``; returns whether the warm-up was over before."""
        was = self.compressed
        self.steps, self.frozen_at = extra["steps"], extra["frozen_at"]
        self._freeze.load_state_dict(extra["warmup"])
        return was
