"""Registration: one call per op gives it a schema, a fake, the torch reference, and kernels by device.

    register("name(Tensor(a!) x, ...) -> ()", reference, native, check)

``reference(*args)`` runs on every device. ``native(*args)`` is the C++ kernel and returns an error code: 0 when the
kernel did the work, else nothing useful happened and the reference, which checks row by row, is asked for the
explanation. A decoder whose code says which message is corrupt needs no second reading of all of them: its ``corrupt``
explains that one. CUDA tensors go to the Triton or CUDA kernel of that name (``gpu.py``), where there is one.
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
    kernel, else Triton; torch operators where it has none, which is said once); "triton", "cuda": those alone, also for
    CPU tensors where Triton is interpreted or the CUDA kernels were built for the host; "reference": torch operators on
    every device.
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
    serial: bool = False,
) -> None:
    """Define ``torch.ops.compcomm.<name>``; ``check(name, *args)`` runs before either implementation.

    ``corrupt(message, row, *args)`` raises what the reference would, where ``native`` returned 1 + message * rows + row
    (rows of the table, the second argument), in time that does not depend on the other messages. ``serial``: the
    reference goes bit by bit, so that where a device has no kernel the work is done on copies on the host.
    """
    name = schema.partition("(")[0]
    arguments = _arguments(schema)
    half = tuple(i for i, (kind, word) in enumerate(arguments) if kind.startswith("Tensor") and word in HALF)
    written = {i for i, (kind, _) in enumerate(arguments) if "!" in kind}
    _library.define(schema)
    torch.library.register_fake(f"compcomm::{name}", fake, lib=_library)

    def plain(*args: Any) -> Any:
        for i in half:
            if args[i] is not None and args[i].dtype in _NARROW:
                return _widened(reference, args, half, written)
        return reference(*args)

    def slow(*args: Any) -> Any:
        if check is not None:
            check(name, *args)
        return plain(*args)

    def explain(code: int, args: tuple[Any, ...]) -> None:
        if code > 0 and corrupt is not None:
            corrupt(*divmod(code - 1, len(args[1])), *args)
        else:
            reference(*args)
        raise RuntimeError(f"compcomm.{name}: the native kernel refused the call (code {code}); please report this")

    def fast(*args: Any) -> None:
        assert native is not None
        if code := native(*args):
            explain(code, args)

    def launched(wanted: str, args: tuple[Any, ...]) -> Any:
        if check is not None:
            check(name, *args)
        return gpu.run(name, wanted, hosted if serial else plain, args)

    def hosted(*args: Any) -> None:
        there = [a.cpu() if isinstance(a, torch.Tensor) else a for a in args]
        on_cpu(*there)
        for i in written:
            if args[i] is not None:
                args[i].copy_(there[i])

    def on_cpu(*args: Any) -> Any:
        if _Choice.cpu == "native" and native is not None:  # written out: this is on the way of every bucket
            if check is not None:
                check(name, *args)
            for i in half:
                if args[i] is not None and args[i].dtype in _NARROW:
                    return _widened(fast, args, half, written)
            if code := native(*args):
                explain(code, args)
            return None
        if _Choice.cpu in ("native", "reference"):
            return slow(*args)
        return launched(_Choice.cpu, args)

    def elsewhere(*args: Any) -> Any:
        if gpu.device_of(args).type == "cpu":  # of another layout, such as sparse: refused with a reason
            return on_cpu(*args)
        return slow(*args) if _Choice.gpu == "reference" else launched(_Choice.gpu, args)

    _library.impl(name, elsewhere if _has_tensors(schema) else slow, "CompositeExplicitAutograd")
    _library.impl(name, on_cpu, "CPU")


HALF = frozenset(("x", "add", "out", "list", "to", "source", "beta", "gradient", "error", "estimate"))
"""Names of the arguments that may be in half precision; what is not among them has a type of its own, which ``check``
asks for. (Lists of tensors are their ops' own affair.)"""
_NARROW = (torch.bfloat16, torch.float16)


def _arguments(schema: str) -> list[tuple[str, str]]:
    """The type and the name of each argument."""
    inside = schema.partition("(")[2].rpartition(" ->")[0].rpartition(")")[0]
    pairs = [argument.rpartition(" ") for argument in inside.split(", ")]
    return [(kind, name) for kind, _, name in pairs]


def _widened(f: Callable[..., Any], args: tuple[Any, ...], half: tuple[int, ...], written: set[int]) -> Any:
    """``f`` on fp32 copies of the half-precision tensors; what it wrote goes back at the end.

    For the kernels that know fp32 alone; those on GPUs read and write half precision as it is.
    """
    wide = list(args)
    for i in half:
        if args[i] is not None and args[i].dtype in _NARROW:
            wide[i] = args[i].float()
    result = f(*wide)
    for i in half:
        if i in written and wide[i] is not args[i]:
            args[i].copy_(wide[i])
    return result


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
