"""The library of CUDA kernels, loaded with ctypes; its functions launch on torch's current stream.

Where it was not built nothing is registered, and ``missing`` says why; Triton's kernels then do the work.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

ABI = 1
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
KERNELS: dict[str, Callable[..., Any]] = {}
_NAME = "libcompcomm_cuda.so"
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_log = logging.getLogger("compcomm")
F = TypeVar("F", bound=Callable[..., Any])


def _candidates() -> list[Path]:
    """Where the library may be: in the package, beside an editable install, or built by hand in a checkout."""
    forced = os.environ.get("COMPCOMM_CUDA_LIBRARY")
    if forced:
        return [Path(forced)]
    package = Path(__file__).resolve().parents[2]
    folders = [package / "_lib", *(Path(p) / "compcomm" / "_lib" for p in sys.path if p)]
    if (package.parent / "csrc" / "CMakeLists.txt").exists():
        folders.append(package.parent / "build")
    found = {folder / _NAME for folder in folders if (folder / _NAME).is_file()}
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    reason = (
        "its kernels were not built; install CUDA's nvcc, then reinstall compcomm with CC_BUILD_CUDA=on in the "
        "environment (pip install --force-reinstall --no-deps compcomm; in a checkout: pip install -e .)"
    )
    for path in _candidates():
        try:
            handle = ctypes.CDLL(str(path))
        except OSError as error:
            reason = f"{path} cannot be loaded ({error}); reinstall compcomm"
        else:
            if getattr(handle, "cc_cuda_abi_version", lambda: None)() == ABI:
                return handle, ""
            reason = f"{path} is not ours, or of another version; reinstall compcomm"
        _log.warning("compcomm: %s", reason)
    return None, reason


_library, _reason = _load()
EMULATED = _library is not None and bool(_library.cc_cuda_emulated())
"""The kernels were compiled for the host and take CPU tensors."""


def missing() -> str:
    """Why an op has no CUDA kernel here."""
    return "CUDA C++ has no kernel for it" if _library is not None else _reason


def kernel(name: str) -> Callable[[F], F]:
    """Enters a function that takes the op's arguments, already checked by the op's own check, where there is a
    library."""

    def enter(f: F) -> F:
        if _library is not None:
            KERNELS[name] = f
        return f

    return enter


class Function:
    """A C function that launches: ``f(tensor, ...)`` calls it on the current stream of that tensor's device."""

    def __init__(self, name: str, *argtypes: type) -> None:
        self._name = name
        self._call: Any = None
        if _library is not None:
            _library.cc_cuda_error.restype = ctypes.c_char_p
            self._call = getattr(_library, name)
            self._call.argtypes, self._call.restype = (*argtypes, POINTER), INT

    def __call__(self, where: Tensor, *args: Any) -> None:
        code = self._call(*args, torch.cuda.current_stream(where.device).cuda_stream if where.is_cuda else None)
        if code:
            raise RuntimeError(f"compcomm.{self._name.removeprefix('cc_cuda_')}: {explain(code)}")


def explain(code: int) -> str:
    """An error of CUDA's in words, and what to do."""
    assert _library is not None
    text = _library.cc_cuda_error(code).decode()
    devices = ctypes.c_int()
    if _library.cc_cuda_device_count(ctypes.byref(devices)) or not devices.value:
        hint = "install a GPU and its driver, or keep tensors on the CPU"
    else:
        hint = "run with CUDA_LAUNCH_BLOCKING=1 to find the launch that failed"
    return (
        f"CUDA refused the launch: {text} (error {code}); {hint}, or run every op on torch operators with "
        "compcomm.ops.backend('reference') (COMPCOMM_BACKEND=reference)."
    )


def number(name: str, *args: int) -> int:
    """What a C function says that takes and gives int64."""
    if _library is None:
        return 0
    f = getattr(_library, name)
    f.argtypes, f.restype = [LONG] * len(args), LONG
    return f(*args)


def typed(tensor: Tensor | None) -> tuple[int | None, int]:
    """Address and type of a tensor of floats, as C functions take them."""
    return (None, 0) if tensor is None else (tensor.data_ptr(), _TYPES[tensor.dtype])
