"""What an optimizer with compressed momentum is made of: what each of them gives, and what its parts may ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.compressor import Compressor
from ..core.reducer import Reducer
from .alone import Alone
from .exchange import Exchange
from .flags import Flags
from .flat import Flat
from .freeze import Freeze
from .hook import Hook
from .options import check_options


class Contract(torch.optim.Optimizer):
    """Begin with ``CompressedOptimizer``, which has all but what raises NotImplementedError here."""

    TAKES_ADAM = False
    """Whether it goes on from the state of torch's Adam."""
    OWN: tuple[str, ...] = ()
    """What ``own`` may have."""
    bias_correction: bool = False
    steps: int
    """Steps that counted."""
    group: dist.ProcessGroup | None
    world: int
    reducer: Compressor | Reducer
    """What compresses, once the warm-up is over."""
    exchange: Exchange | None
    """It at work; None: there is one rank."""
    dense: Exchange | None
    """What averages gradients in ``step``; None: DDP does, or nobody."""
    alone: Alone
    """Parameters that DDP was told to ignore."""
    _call: str
    _names: dict[int, str]
    _facts: dict[str, Any]
    _warmup: Compressor | Reducer
    _timeout: timedelta | float | None
    _seed: int
    _ddp: Any
    _ddp_averages: bool
    _hook: Hook | None
    _flat: Flat | None
    _flags: Flags
    _freeze: Freeze
    _spare: Tensor | None
    _left: list[tuple[str, Tensor]]
    _ignored: set[int]
    _driven: bool
    _scaled: bool
    _apart: bool
    _checked: bool
    _closed: bool

    @property
    def flat(self) -> Flat:
        """The plan of the flat vectors."""
        assert self._flat is not None
        return self._flat

    def _advance(self, scale: float, bad: bool) -> bool:
        """One step; whether this rank made it. ``scale`` times ``p.grad`` is the unscaled gradient; ``bad``: this
        rank's is not finite."""
        raise NotImplementedError

    def vectors(self) -> dict[str, Tensor]:
        """The flat vectors that are replicated and survive, by the name that they have in ``state_dict``."""
        raise NotImplementedError

    def own(self) -> dict[str, list[Tensor]]:
        """What this rank alone has of each parameter, beside what it failed to send, by its name in ``state_dict``."""
        return {}

    def check_extra(
        self, extra: Mapping[str, Any], vectors: Mapping[str, Tensor], own: Mapping[str, Sequence[Any]]
    ) -> None:
        """Raises StateError where ``load`` could not take these."""
        raise NotImplementedError

    def load(self, vectors: dict[str, Tensor], own: Mapping[str, list[Tensor]], extra: Mapping[str, Any]) -> None:
        """Takes flat vectors, a rank's own tensors and ``extra`` of a checkpoint."""
        raise NotImplementedError

    def absorb(self, residual: Tensor) -> None:
        """Takes over what several ranks had still to apply, where one rank goes on alone."""
        raise NotImplementedError

    def extra(self) -> dict[str, Any]:
        """What else survives: numbers and strings, and lists and dictionaries of them."""
        raise NotImplementedError

    def check_group(self, group: dict[str, Any]) -> None:
        """Raises ValueError for options that cannot be."""
        check_options(self._call, group)

    @property
    def compressed(self) -> bool:
        """Whether the warm-up is over."""
        raise NotImplementedError

    @property
    def averaged(self) -> int:
        """Averages of gradients so far, in the phase that has them: what random numbers of ``warmup`` depend on."""
        raise NotImplementedError
