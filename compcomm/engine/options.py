"""What a user gives to attach, checked at once and before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..core.compressor import Compressor
from ..core.reducer import Reducer
from ..core.structure import Group
from .host import SCRIPT, Host


def _is(value: object, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


@dataclass(frozen=True)
class Options:
    """The arguments of ``attach`` and ``DDPState`` that concern a session; which ranks it has is the host's affair.

    Args:
        reducer, scaler, seed, check_every, optimizer, discardable: see ``DDPState``.
        host: how errors speak of it.
    """

    reducer: Reducer | Compressor
    scaler: Any = None
    seed: int = 0
    check_every: int = 0
    optimizer: Any = None
    discardable: bool = False
    host: Host = SCRIPT

    def __post_init__(self) -> None:
        call = self.host.call
        if not _is(self.reducer, Reducer, Compressor):
            raise TypeError(
                f"{call}: {self.reducer!r} is no reducer. Give one, such as cc.ErrorFeedback(cc.TopK(ratio=0.01)), "
                f"or a compressor; cc.parse(text) makes one from text."
            )
        if not _is(self.seed, int) or not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"{call}: seed={self.seed!r} is not a 64-bit integer.")
        if not _is(self.check_every, int) or self.check_every < 0:
            raise ValueError(f"{call}: check_every={self.check_every!r}: give a number of steps, or 0 for never.")
        if self.scaler is not None and not callable(getattr(self.scaler, "get_scale", None)):
            raise TypeError(f"{call}: scaler={self.scaler!r} has no get_scale(); give a torch.amp.GradScaler.")

        if not isinstance(self.discardable, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{call}: discardable={self.discardable!r}: True keeps what discard() needs, or False.")
        if any(not isinstance(getattr(o, "param_groups", None), list) for o in self._optimizers):
            raise TypeError(
                f"{call}: optimizer={self.optimizer!r} has no param_groups. Give one of torch.optim, or several in "
                f"a tuple."
            )

    @property
    def _optimizers(self) -> tuple[Any, ...]:
        given: Any = self.optimizer
        return () if given is None else tuple(given) if isinstance(given, tuple | list) else (given,)

    def groups(self, parameters: Sequence[tuple[str, nn.Parameter]] | None) -> dict[str, Group | None] | None:
        """What group of the optimizer each parameter is in, None for one that trains in no group; all groups, where
        parameters have no names yet."""
        if self.optimizer is None:
            return None
        found: dict[str, Group | None] = {}
        names = {id(p): name for name, p in parameters or ()}
        found.update((name, None) for name, p in parameters or () if p.requires_grad)
        for optimizer in self._optimizers:
            for number, options in enumerate(optimizer.param_groups):
                group = Group(type(optimizer).__name__, number, options)
                for p in options["params"]:
                    if parameters is None or id(p) in names:
                        found[names.get(id(p), f"parameter {len(found)}")] = group
        return found

    def unscale(self) -> float:
        """1/loss-scale, as of now."""
        return 1.0 if self.scaler is None else 1.0 / float(self.scaler.get_scale())
