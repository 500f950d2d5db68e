"""Messages that cannot be true: found on the device before anything is decoded, reported without waiting for it.

What a peer sent is checked by kernels of their own, which ``report`` into the call's word (``fresh``). The kernels that
decode do nothing where the word holds a fault, and ``remember`` it in the device's sticky word, which keeps the first.
On a GPU nobody reads them in the call: whoever waits for the device anyway looks at ``sticky``. In the interpreter
``raise_on_cpu`` raises at once, as the reference does.

A word holds ``op << 52 | (row + 1) << 20 | message``: of the faults of one call the smallest is the one that the
reference finds first, row by row, and in a row message by message.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..scratch import scratch

NONE = (1 << 63) - 1
"""A call's word without a fault. A sticky word without one is 0."""

_explain: list[Callable[[int, int], str]] = []
_sticky: dict[torch.device, Tensor] = {}


def source(explain: Callable[[int, int], str]) -> int:
    """The number of an op that reports faults; ``explain(message, row)`` says what one means."""
    _explain.append(explain)
    return len(_explain) - 1


def fresh(device: torch.device) -> Tensor:
    """This call's word (int64, ``[1]``), without a fault."""
    return scratch("fault", 1, torch.int64, device).fill_(NONE)


def sticky(device: torch.device) -> Tensor:
    """The device's sticky word (int64, ``[1]``): 0, or the first fault since it was last raised."""
    if device not in _sticky:
        _sticky[device] = torch.zeros(1, dtype=torch.int64, device=device)
    return _sticky[device]


def raise_on_cpu(device: torch.device) -> None:
    """Raises the fault of the call that ends, where results are there already: on CPU tensors."""
    if device.type == "cpu":
        raise_now(device)


def raise_now(device: torch.device) -> None:
    """Waits for the device; RuntimeError for the first fault of earlier calls, which is forgotten with that."""
    word = sticky(device)
    fault = int(word)
    if fault:
        word.zero_()
        raise error(fault)


def error(fault: int) -> RuntimeError:
    """What a sticky word's content means."""
    return RuntimeError(_explain[fault >> 52](fault & 0xFFFFF, (fault >> 20 & 0xFFFFFFFF) - 1))


@triton.jit
def report(word, op, message, row):
    """The fault enters the call's word, unless that holds a smaller one."""
    one = tl.full([], 1, tl.int64)
    code = (one * op << 52) | ((one * row + 1) << 20) | tl.minimum(one * message, 0xFFFFF)
    tl.atomic_min(word, code, sem="relaxed")


@triton.jit
def faulty(word):
    """Whether the call found a fault; only once all its checks are launches of the past."""
    return tl.load(word) != 0x7FFFFFFFFFFFFFFF


@triton.jit
def remember(word, sticky):
    """The call's fault becomes the device's if that has none. One program of the call does this."""
    old = tl.load(sticky)
    tl.store(sticky, tl.where(old == 0, tl.load(word), old))
