"""The CUDA C++ kernels, loaded with ctypes as the C++ ones are; none so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KERNELS: dict[str, Callable[..., Any]] = {}
EMULATED = False


def missing() -> str:
    """Why an op has no CUDA kernel here."""
    return "CUDA has no kernel for it"
