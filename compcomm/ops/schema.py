"""Registration: one call per op gives it a schema, a fake, the torch reference and, on CPU, the C++ kernel.

    register("name(Tensor(a!) x, ...) -> ()", reference, native, check)

``reference(*args)`` runs on every device. ``native(*args)`` returns an error code: 0 when the kernel did the work, else
nothing useful happened and the reference, which checks row by row, is asked for the explanation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from . import native as _native

_library = torch.library.Library("compcomm", "FRAGMENT")
_BACKENDS = ("native", "reference")


class _Choice:
    """The backend in use. Process-wide, not per thread: the kernels of one step run on several threads."""

    native = False


class backend:
    """Choose the implementation: ``backend("reference")`` from now on, or ``with backend("reference"): ...``.

    "native": C++ kernels for CPU tensors (the default where the library is there); "reference": torch operators.
    """

    def __init__(self, name: str) -> None:
        if name not in _BACKENDS:
            raise ValueError(f"backend({name!r}): choose one of {', '.join(map(repr, _BACKENDS))}")
        if name == "native" and not _native.available():
            raise RuntimeError(
                'backend("native"): the native library is not installed. Install a C++ compiler and CMake, then '
                'reinstall compcomm; or use backend("reference").'
            )
        self._before = _Choice.native
        _Choice.native = name == "native"

    def __enter__(self) -> backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _Choice.native = self._before


def current_backend() -> str:
    """The backend that CPU tensors use now."""
    return "native" if _Choice.native else "reference"


def register(
    schema: str,
    reference: Callable[..., Any],
    native: Callable[..., int] | None = None,
    check: Callable[..., None] | None = None,
    fake: Callable[..., Any] = lambda *_: None,
) -> None:
    """Define ``torch.ops.compcomm.<name>``; ``check(name, *args)`` runs before either implementation."""
    name = schema.partition("(")[0]
    _library.define(schema)
    torch.library.register_fake(f"compcomm::{name}", fake, lib=_library)

    def slow(*args: Any) -> Any:
        if check is not None:
            check(name, *args)
        return reference(*args)

    _library.impl(name, slow, "CompositeExplicitAutograd")
    if native is None:
        return

    def fast(*args: Any) -> None:
        if not _Choice.native:
            return slow(*args)
        if check is not None:
            check(name, *args)
        code = native(*args)
        if code:
            reference(*args)
            raise RuntimeError(f"compcomm.{name}: the native kernel refused the call (code {code}); please report this")

    _library.impl(name, fast, "CPU")


def _initial() -> None:
    wanted = os.environ.get("COMPCOMM_BACKEND")
    if wanted:
        backend(wanted)
    else:
        _Choice.native = _native.available()


_initial()
