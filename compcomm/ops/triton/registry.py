"""Which op has a Triton kernel: modules of this folder enter theirs with ``@kernel(name)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
KERNELS: dict[str, Callable[..., Any]] = {}


def kernel(name: str) -> Callable[[F], F]:
    """The function takes the op's arguments, already checked by the op's own check, and launches."""

    def enter(f: F) -> F:
        KERNELS[name] = f
        return f

    return enter
