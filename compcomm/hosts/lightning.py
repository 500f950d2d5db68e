"""A callback for Lightning: ``Trainer(strategy="ddp", callbacks=[Attach(cc.ErrorFeedback(cc.TopK(ratio=0.01)))])``.

Lightning's own argument, ``DDPStrategy(ddp_comm_hook=...)``, is for CUDA alone: on the CPU it is dropped without a
word, and it gives parameters no names. This callback attaches to the DDP model as soon as there is one, says what
``attach`` says, and keeps the memory in Lightning's checkpoints.

Importing this module imports Lightning; nothing else of compcomm does. It serves ``lightning`` and
``pytorch_lightning``, which have a ``Callback`` class each.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from ..core.compressor import Compressor
from ..core.reducer import Reducer
from ..engine.attachment import Attachment
from .attach import attach
from .auto import Auto

_HOMES = ("lightning.pytorch", "pytorch_lightning")


def _bases() -> tuple[type, ...]:
    """The ``Callback`` of each namespace that is in use; where none is yet, of the first that is installed, if any."""
    homes = [name for name in _HOMES if name in sys.modules]
    for name in () if homes else _HOMES:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
            continue
        homes = [name]
        break
    return tuple(sys.modules[name].Callback for name in homes)


_BASES = _bases()
_Callback: Any = type("_Callback", _BASES, {})


class Attach(_Callback):
    """Averages the gradients of ``Trainer.fit`` by ``reducer``.

    Checkpoints hold the portable state: one file for all ranks, also for another number of them. Lightning asks every
    rank for it, and writes rank 0's. What one ``fit`` leaves in memory, the next one of the same trainer goes on from.

    Args:
        reducer: see ``attach``.
        options: those of ``attach``. The scaler of a mixed precision plugin and the trainer's optimizers are passed
            on without being named.
    """

    def __init__(self, reducer: Reducer | Compressor | Auto, **options: Any) -> None:
        if not _BASES:
            raise ModuleNotFoundError(f"Attach({reducer!r}): Lightning is not installed: pip install lightning.")
        super().__init__()
        self.reducer, self.options = reducer, options
        self.attachment: Attachment | None = None
        """At work since the last ``fit`` began; None before, and where one process trains alone."""
        self._loaded: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attaches: DDP has been made, optimizers too, and callbacks have been given what the checkpoint holds.

        Raises:
            TypeError: the strategy makes no DDP model.
        """
        model = trainer.strategy.model
        if not isinstance(getattr(model, "_orig_mod", model), nn.parallel.DistributedDataParallel):
            if trainer.world_size == 1:
                return
            raise TypeError(
                f"Attach: {type(trainer.strategy).__name__} trains a {type(model).__name__}, and a hook needs a "
                f"DistributedDataParallel model. Give Trainer(strategy='ddp')."
            )
        given: dict[str, Any] = {
            "scaler": getattr(trainer.precision_plugin, "scaler", None),
            "optimizer": tuple(trainer.optimizers) or None,
            **self.options,
        }
        before, self.attachment = self.attachment, attach(model, self.reducer, **given)
        if self._loaded is not None:
            self.attachment.load_portable_state_dict(self._loaded)
            self._loaded = None
        elif before is not None:
            self.attachment.load_state_dict(before.state_dict())
        if before is not None:
            before.detach()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds. Collective, as ``Trainer.save_checkpoint`` is."""
        return dict(self._loaded or {}) if self.attachment is None else self.attachment.portable_state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keeps it for ``on_fit_start``: Lightning restores callbacks before there is a DDP model."""
        self._loaded = dict(state_dict)
