"""One small call and more of every op that has a kernel for GPUs, so that a test can compile or run each of them.

A module of this folder names its ops in ``CALLS``: pairs of an op's name and a function that makes its arguments, on
the CPU, valid as they are. Several calls of one op cover the forms that are compiled differently.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

Call = tuple[str, Callable[[], tuple[Any, ...]]]


def calls() -> list[Call]:
    """All of them, in order of module and line."""
    return [
        call
        for module in sorted(m.name for m in pkgutil.iter_modules(__path__))
        for call in importlib.import_module(f"{__name__}.{module}").CALLS
    ]
