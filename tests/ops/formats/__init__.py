"""Dense formats, one family per module: every ``FORMATS`` in this folder is tested by ``test_dense_formats``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Coded:
    """One configuration of the op pair ``<name>_encode`` and ``<name>_decode``.

    ``section``: bytes of a row of so many elements, a multiple of four. ``encode_tail`` and ``decode_tail`` give the
    arguments beyond the shared ones. ``block``: where a row may be cut without changing a code.
    """

    name: str
    label: str
    section: Callable[[int], int]
    encode_tail: Callable[[Tensor, int, int], tuple[object, ...]]  # (gain [rows], step, rank)
    decode_tail: Callable[[], tuple[object, ...]]
    block: int = 512
    stochastic: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.label}"


def discovered() -> list[Coded]:
    """The formats of all modules here."""
    names = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__")
    return [form for name in names for form in import_module(f"tests.ops.formats.{name}").FORMATS]
