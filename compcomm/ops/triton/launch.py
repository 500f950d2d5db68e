"""Launching a Triton kernel: on the GPU's current stream, in Triton's interpreter, or only as far as the compiler.

Floats are never contracted into fused multiply-adds: results have the bits of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)
"""Kernels run in Triton's interpreter, on CPU tensors (``TRITON_INTERPRET=1`` before the first import)."""

Compile = Callable[[Any, tuple[Any, ...], dict[str, Any], int], None]
_compile: Compile | None = None


@contextmanager
def compiling(instead: Compile) -> Iterator[None]:
    """Hands every launch (kernel, arguments, constants, warps) to ``instead``: nothing runs. For machines without a
    GPU."""
    global _compile
    before, _compile = _compile, instead
    try:
        yield
    finally:
        _compile = before


def launch(kernel: Any, programs: int, *args: Any, num_warps: int = 4, **constants: Any) -> None:
    """``programs`` instances of a kernel; none where there is no work. ``constants`` are its ``tl.constexpr``."""
    if programs == 0:
        return
    if _compile is not None:
        _compile(kernel, args, constants, num_warps)
        return
    if INTERPRETED:
        with np.errstate(all="ignore"):  # infinities are met and counted, not warned of
            kernel[(programs,)](*args, **constants)
        return
    kernel[(programs,)](*args, num_warps=num_warps, enable_fp_fusion=False, **constants)
