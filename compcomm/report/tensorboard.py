"""The same numbers for TensorBoard, where its package is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.optional import need

CURE = "pip install tensorboard, or Recorder(..., tensorboard=False)"


class Board:
    """Event files in ``folder``. What an earlier attempt of the run wrote from ``step`` on is no longer shown.

    Raises:
        ImportError: the package is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        check()
        self._summary = need("tensorboard.compat.proto.summary_pb2", "Recorder", CURE).Summary
        made: Any = need("torch.utils.tensorboard", "Recorder", CURE)
        self._writer = made.SummaryWriter(str(folder), purge_step=step)

    def show(self, numbers: Mapping[str, float], step: int) -> None:
        """All of a step in one event, which takes a fifth of the time of ``add_scalar`` for each."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._writer.file_writer.add_summary(self._summary(value=values), step)

    def close(self) -> None:
        self._writer.close()


def check() -> None:
    """Raises ImportError, with the cure, where TensorBoard is missing."""
    need("tensorboard", "Recorder(tensorboard=True)", CURE)
