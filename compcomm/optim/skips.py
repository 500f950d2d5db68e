"""Which steps are skipped: what one rank finds to be infinite or NaN, all hear of; and what has a gradient anywhere."""

from __future__ import annotations

import torch

from .gradients import Gradients


class Skips(Gradients):
    """Every rank calls the same, in the same order."""

    def _has_gradient(self) -> list[bool] | None:
        """Which parameters have a gradient on any rank; None: the step is bad on some rank, and is skipped."""
        told = self._flags.read(self.exchange)
        self._watch(told.scaled)
        return None if told.bad else told.has_gradient

    def _watch(self, scaled: bool) -> None:
        """Whether DDP's hook, while it leaves gradients alone, tells all ranks of an infinity."""
        self._scaled = scaled
        if self._hook is not None:
            self._hook.alarm = self._alarm if scaled else None
            self._hook.late = self._late if scaled and self._apart else None

    def _share_scaled(self) -> None:
        """Where no flags travel: whether a ``GradScaler`` drives any rank. Collective under DDP."""
        if self._hook is not None and self.exchange is not None:
            self._watch(not self.exchange.all(not self._driven))

    def _alarm(self, bad: bool) -> bool:
        """Whether any rank says so."""
        assert self.exchange is not None
        return not self.exchange.all(not bad)

    @torch.no_grad()
    def _late(self, bad: bool) -> None:
        """The alarm after a backward pass: what is each rank's own is looked at too, and made NaN everywhere."""
        if self._alarm(bad or self.alone.bad()):
            self.alone.spoil()
            for p in self.flat.params:
                if p.grad is not None:
                    p.grad.fill_(float("nan"))

    def _skips(self, bad: bool) -> bool:
        """Whether any rank's step is bad, where DDP has averaged the gradients: what one rank finds in them all find,
        but for those that DDP ignores.

        Raises:
            RuntimeError: a scaler alone knows of it, and its scale is no longer that of the others.
        """
        if not self._apart or self.exchange is None:
            return bad
        self._begin_flags(bad)
        if self._has_gradient() is not None:
            return False
        if not self.exchange.all(bad):
            raise RuntimeError(
                f"{self._call}.step: one rank's GradScaler has found an infinity and another rank's has not: scales "
                f"differ from here on, and DDP would average gradients of different scales. A gradient that DDP "
                f"ignores has become infinite after the backward pass, or not every rank has a scaler. Use torch's "
                f"ShardedGradScaler, and call scaler.unscale_(optimizer) before scaler.step(optimizer)."
            )
        return True
