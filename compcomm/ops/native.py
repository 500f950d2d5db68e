"""The C++ kernels, loaded with ctypes: a plain C library that serves every Python and every torch.

ctypes releases the interpreter lock during a call. Where no library is found (a pure-Python install), the ops run their
torch reference, and that is logged once, with the cure.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

ABI = 1
ISAS = ("baseline", "avx2", "avx512")
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_ENCODE = (POINTER, LONG, POINTER, LONG, POINTER, LONG, POINTER, LONG, POINTER, LONG, FLOAT, FLOAT)
_DECODE = (POINTER, LONG, LONG, LONG, POINTER, LONG, POINTER, LONG, POINTER, LONG, FLOAT, INT)
_NAME = "libcompcomm.dylib" if sys.platform == "darwin" else "libcompcomm.so"
_log = logging.getLogger("compcomm")

Function = Callable[..., int]


def _candidates() -> list[Path]:
    """Where the library may be: in the package, beside an editable install, or built by hand in a checkout."""
    forced = os.environ.get("COMPCOMM_LIBRARY")
    if forced:
        return [Path(forced)]
    package = Path(__file__).resolve().parents[1]
    folders = [package / "_lib", *(Path(p) / "compcomm" / "_lib" for p in sys.path if p)]
    if (package.parent / "csrc" / "CMakeLists.txt").exists():
        folders.append(package.parent / "build")
    found = {folder / _NAME for folder in folders if (folder / _NAME).is_file()}
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _load() -> ctypes.CDLL | None:
    for path in _candidates():
        try:
            handle = ctypes.CDLL(str(path))
        except OSError as error:
            _log.warning("compcomm: cannot load %s (%s); rebuild it with `pip install -e .`", path, error)
            continue
        if getattr(handle, "cc_abi_version", lambda: None)() != ABI:
            _log.warning("compcomm: %s is not ours, or of another version; rebuild it with `pip install -e .`", path)
        elif handle.cc_isa_best() < 0:
            _log.warning("compcomm: %s was built for other processors; rebuild it with `pip install -e .`", path)
        else:
            return handle
    _log.warning(
        "compcomm: no native library; compression runs on torch operators, ten to eighty times slower. Cure: install a "
        "C++ compiler and CMake, then `pip install --force-reinstall --no-deps compcomm` (in a checkout: "
        "`pip install -e .`)."
    )
    return None


_library = _load()


def _usable() -> tuple[str, ...]:
    if _library is None:
        return ()
    used: int = _library.cc_isa()
    found = tuple(name for level, name in enumerate(ISAS) if _library.cc_isa_set(level) == 0)
    _library.cc_isa_set(used)
    return found


_isas = _usable()


def available() -> bool:
    """Whether the C++ library is there."""
    return _library is not None


def isa() -> str:
    """The instruction set in use: "baseline", "avx2", "avx512", or "none" without the library."""
    if _library is None:
        return "none"
    level: int = _library.cc_isa()
    return ISAS[level]


def isas() -> tuple[str, ...]:
    """The instruction sets that can be used: this processor has them, and the library was built for them."""
    return _isas


def set_isa(name: str) -> None:
    """Use this instruction set from now on (tests, benchmarks); results do not depend on it."""
    if name not in isas() or _library is None:
        raise ValueError(
            f"COMPCOMM_CPU={name!r}: this machine has {', '.join(isas()) or 'no native library'}; "
            "`CC_ISAS=all pip install -e .` builds all sets that there are"
        )
    _library.cc_isa_set(ISAS.index(name))


if _library is not None and os.environ.get("COMPCOMM_CPU"):
    set_isa(os.environ["COMPCOMM_CPU"])


def function(name: str, *argtypes: type) -> Function | None:
    """A C function that returns int64, or None when there is no library or it lacks this one."""
    if _library is None or not hasattr(_library, name):
        return None
    f = getattr(_library, name)
    f.argtypes, f.restype = argtypes, ctypes.c_int64
    return f


def encoder(name: str, *argtypes: type) -> Function | None:
    """A C encoder: the shared leading arguments and then these."""
    return function(name, *_ENCODE, *argtypes)


def decoder(name: str, *argtypes: type) -> Function | None:
    """A C decoder: the shared leading arguments and then these."""
    return function(name, *_DECODE, *argtypes)


def encodes(name: str, *argtypes: type, tensors: int = 0) -> Function | None:
    """What ``register`` takes for an encoder; None without the C function. Of its further arguments the first
    ``tensors``, 2 at most, are tensors (the first one may be None), of which C gets the address; the rest are numbers.

    It is on the way of every bucket, and so written out, in one Python call.
    """
    f = encoder(f"cc_{name}", *[POINTER] * tensors, *argtypes)
    if f is None:
        return None

    def call(
        x: Tensor | None, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float,
        add_scale: float, *rest: Any,
    ) -> int:  # fmt: skip
        if tensors:
            first = rest[0]
            pointers = (None if first is None else first.data_ptr(),)
            rest = (*pointers, *rest[1:]) if tensors == 1 else (*pointers, rest[1].data_ptr(), *rest[2:])
        return f(
            None if x is None else x.data_ptr(),
            0 if x is None else x.numel(),
            None if add is None else add.data_ptr(),
            0 if add is None else add.numel(),
            wire.data_ptr(),
            wire.numel(),
            table.data_ptr(),
            table.shape[0],
            status.data_ptr(),
            status.numel(),
            decay,
            add_scale,
            *rest,
        )

    return call


def decodes(name: str, *argtypes: type, tensors: int = 0) -> Function | None:
    """The same for a decoder; ``tensors``: 0 or 1."""
    f = decoder(f"cc_{name}", *[POINTER] * tensors, *argtypes)
    if f is None:
        return None

    def call(
        wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, *rest: Any
    ) -> int:
        messages, nbytes = wires.shape
        if tensors:
            rest = (rest[0].data_ptr(), *rest[1:])
        return f(
            wires.data_ptr(),
            messages,
            wires.stride(0),
            nbytes,
            table.data_ptr(),
            table.shape[0],
            skip.data_ptr(),
            skip.numel(),
            out.data_ptr(),
            out.numel(),
            scale,
            accumulate,
            *rest,
        )

    return call


def spans(*tensors: Tensor) -> list[int]:
    """Address and number of elements of each, as C functions take them."""
    found: list[int] = []
    for t in tensors:
        found += (t.data_ptr(), t.numel())
    return found


__all__ = ["available", "decoder", "decodes", "encoder", "encodes", "function", "isa", "isas", "set_isa", "spans"]
