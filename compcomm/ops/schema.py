"""Registration: one call per op gives it a schema, a fake, the torch reference, and kernels by device.

    register("name(Tensor(a!) x, ...) -> ()", reference, native, check)

``reference(*args)`` runs on every device. ``native(*args)`` is the C++ kernel and returns an error code: 0 when the
kernel did the work, else nothing useful happened and the reference, which checks row by row, is asked for the
explanation. A decoder whose code says which message is corrupt needs no second reading of all of them: its ``corrupt``
explains that one. CUDA tensors go to the Triton or CUDA kernel of that name (``gpu.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from . import gpu
from . import native as _native

_library = torch.library.Library("compcomm", "FRAGMENT")
_BACKENDS = ("native", "triton", "cuda", "reference")


class _Choice:
    """The backends in use. Process-wide, not per thread: the kernels of one step run on several threads."""

    cpu = "reference"
    gpu = "native"


class backend:
    """Choose the implementation: ``backend("reference")`` from now on, or ``with backend("reference"): ...``.

    "native": compiled kernels, the default (C++ for CPU tensors; for CUDA tensors CUDA C++ where an op has such a
    kernel, else Triton); "triton", "cuda": those alone, also for CPU tensors where Triton is interpreted or the CUDA
    kernels were built for the host; "reference": torch operators on every device.
    """

    def __init__(self, name: str) -> None:
        if name not in _BACKENDS:
            raise ValueError(f"backend({name!r}): choose one of {', '.join(map(repr, _BACKENDS))}")
        if name == "native" and not _native.available():
            raise RuntimeError(
                'backend("native"): the native library is not installed. Install a C++ compiler and CMake, then '
                'reinstall compcomm; or use backend("reference").'
            )
        self._before = _Choice.cpu, _Choice.gpu
        _Choice.cpu = _Choice.gpu = name

    def __enter__(self) -> backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _Choice.cpu, _Choice.gpu = self._before


def current_backend(device: str = "cpu") -> str:
    """The backend that tensors on a device of this type use now."""
    return _Choice.cpu if device == "cpu" else _Choice.gpu


def register(
    schema: str,
    reference: Callable[..., Any],
    native: Callable[..., int] | None = None,
    check: Callable[..., None] | None = None,
    fake: Callable[..., Any] = lambda *_: None,
    corrupt: Callable[..., None] | None = None,
) -> None:
    """Define ``torch.ops.compcomm.<name>``; ``check(name, *args)`` runs before either implementation.

    ``corrupt(message, row, *args)`` raises what the reference would, where ``native`` returned 1 + message * rows + row
    (rows of the table, the second argument), in time that does not depend on the other messages.
    """
    name = schema.partition("(")[0]
    written = tuple("!" in argument for argument in schema.partition("->")[0].split(", "))
    _library.define(schema)
    torch.library.register_fake(f"compcomm::{name}", fake, lib=_library)

    def slow(*args: Any) -> Any:
        if check is not None:
            check(name, *args)
        with _widened(args, written) as args:
            return reference(*args)

    def launched(wanted: str, args: tuple[Any, ...]) -> Any:
        if check is not None:
            check(name, *args)
        return gpu.run(name, wanted, args)

    def on_cpu(*args: Any) -> Any:
        if _Choice.cpu == "reference" or (native is None and _Choice.cpu == "native"):
            return slow(*args)
        if _Choice.cpu != "native" or native is None:
            return launched(_Choice.cpu, args)
        if check is not None:
            check(name, *args)
        with _widened(args, written) as args:
            code = native(*args)
            if code > 0 and corrupt is not None:
                corrupt(*divmod(code - 1, len(args[1])), *args)
            elif code:
                reference(*args)
            if code:
                raise RuntimeError(
                    f"compcomm.{name}: the native kernel refused the call (code {code}); please report this"
                )

    def elsewhere(*args: Any) -> Any:
        if gpu.device_of(args).type == "cpu":  # of another layout, such as sparse: refused with a reason
            return on_cpu(*args)
        return slow(*args) if _Choice.gpu == "reference" else launched(_Choice.gpu, args)

    _library.impl(name, elsewhere if _has_tensors(schema) else slow, "CompositeExplicitAutograd")
    _library.impl(name, on_cpu, "CPU")


_NARROW = (torch.bfloat16, torch.float16)


class _widened:
    """An op's arguments with fp32 copies in place of half-precision tensors; what the op wrote goes back at the end.

    For the kernels that know fp32 alone; those on GPUs read and write half precision as it is.
    """

    def __init__(self, args: tuple[Any, ...], written: tuple[bool, ...]) -> None:
        self._args, self._back = args, ()
        if any(isinstance(a, torch.Tensor) and a.dtype in _NARROW for a in args):
            self._args = tuple(a.float() if isinstance(a, torch.Tensor) and a.dtype in _NARROW else a for a in args)
            self._back = [(a, b) for a, b, w in zip(args, self._args, written, strict=True) if w and a is not b]

    def __enter__(self) -> tuple[Any, ...]:
        return self._args

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            for narrow, wide in self._back:
                narrow.copy_(wide)


def _has_tensors(schema: str) -> bool:
    """Whether an argument says on which device an op runs."""
    return "Tensor" in schema.partition("->")[0]


def _initial() -> None:
    wanted = os.environ.get("COMPCOMM_BACKEND")
    if wanted:
        backend(wanted)
    else:
        _Choice.cpu = "native" if _native.available() else "reference"


_initial()
