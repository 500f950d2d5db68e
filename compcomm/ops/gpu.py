"""Which kernel serves an op on a GPU: CUDA C++ where there is one for it and it was built, else Triton, else none: then
the torch reference runs there (or, where that goes bit by bit, the C++ kernel on copies), which is said once.

Kernels are looked for at the first tensor that needs them, so machines without a GPU pay nothing. CPU tensors come here
only where they are asked to by ``backend("triton")`` or ``backend("cuda")``: for Triton's interpreter, or for CUDA
kernels that were compiled for the host.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

Kernel = Callable[..., Any]
_log = logging.getLogger("compcomm")
CURE = (
    "or run every op on torch operators, tens of times slower, with compcomm.ops.backend('reference') "
    "(COMPCOMM_BACKEND=reference)."
)


@cache
def _triton() -> tuple[dict[str, Kernel], bool, str]:
    """Its kernels, whether they are interpreted, and why there are none."""
    try:
        found = importlib.import_module("compcomm.ops.triton")
    except ImportError as error:
        return {}, False, f"Triton cannot be imported ({error}); install triton, which torch for CUDA brings"
    return found.KERNELS, found.INTERPRETED, "Triton has no kernel for it"


@cache
def _cuda() -> tuple[dict[str, Kernel], bool, str]:
    """The same for CUDA C++."""
    found = importlib.import_module("compcomm.ops.cuda")
    return found.KERNELS, found.EMULATED, found.missing()


def find(op: str, wanted: str, device: str) -> Kernel | str:
    """The kernel of ``op`` for tensors on ``device``, or why there is none; ``wanted``: "triton", "cuda", or "native"
    for either."""
    reasons: list[str] = []
    for name, backend in (("cuda", _cuda), ("triton", _triton)):
        if wanted not in (name, "native"):
            continue
        kernels, on_host, reason = backend()
        if op in kernels and device in ("cpu", "cuda") and on_host == (device == "cpu"):
            return kernels[op]
        if op in kernels:
            reason = {
                "triton": "Triton's interpreter needs TRITON_INTERPRET=1 before the first use, and CPU tensors",
                "cuda": "CUDA kernels need CUDA tensors, and those built for the host CPU tensors",
            }[name]
        reasons.append(f"{name}: {reason}")
    if device not in ("cpu", "cuda"):
        reasons = [f"kernels are there for cpu and cuda, not for {device}"]
    return "; ".join(reasons)


def run(op: str, wanted: str, reference: Kernel, args: tuple[Any, ...]) -> Any:
    """Launches the kernel on the device of the tensors, in its current stream; where there is none, ``reference``.

    Raises:
        RuntimeError: there is none, and nothing else was wanted, or the reference cannot run on that device.
    """
    device = device_of(args)
    f = find(op, wanted, device.type)
    if isinstance(f, str):
        if wanted != "native":
            raise RuntimeError(f"compcomm.{op}: no kernel for {device.type} tensors ({f}). Mend that, {CURE}")
        say_once(op, device.type, f)
        try:
            return reference(*args)
        except (NotImplementedError, TypeError) as error:  # an operator or a type that the device lacks
            raise RuntimeError(
                f"compcomm.{op}: no kernel for {device.type} tensors ({f}), and the torch reference cannot run there "
                f"({error}). Use a compressor without this op, or keep the model on the CPU or a CUDA device."
            ) from error
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return f(*args)
    return f(*args)


@cache
def say_once(op: str, device: str, reason: str) -> None:
    """That an op runs without a kernel."""
    _log.warning(
        "compcomm: %s has no kernel for %s tensors (%s); torch operators or the host do its work, many times slower, "
        "and the host waits for them",
        *(op, device, reason),
    )


def corruption(device: torch.device) -> tuple[torch.Tensor, Callable[[int], Exception]]:
    """The word (int64 [1]) in which kernels on this device keep the first message that could not be decoded, 0 where
    there was none; and what makes the error of it. Reading it waits for the device."""
    faults = importlib.import_module("compcomm.ops.triton.faults")
    return faults.sticky(device), faults.error


def device_of(args: tuple[Any, ...]) -> torch.device:
    """Where an op runs: where its tensors lie; tables and constants may lie on the host."""
    found = torch.device("cpu")
    for a in args:
        for t in a if isinstance(a, (list, tuple)) else (a,):
            if isinstance(t, torch.Tensor) and t.device.type != "cpu":
                return t.device
    return found
