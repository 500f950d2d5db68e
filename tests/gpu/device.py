"""An op's arguments on the GPU, with memory around them that nobody may touch, and results to compare.

As in training, tables and constants stay on the host, and what a kernel reads or writes per element lies on the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.ops.calls import Call, calls

DEVICE = torch.device("cuda")
HOST = {"table", "gain", "levels", "quantiles", "pieces", "spans", "places", "beta"}
"""Arguments that lie on the host, by the names in the schemas."""
LOOSE = {"lowrank_project": 1e-5, "lowrank_backproject": 1e-5}
"""Ops that promise no order of additions, and the relative error that this is worth."""
GUARD, POISON = 256, 0xA5
OPS = torch.ops.compcomm


class Placed(NamedTuple):
    """``args`` of a call, and the memory that holds those which lie on the device."""

    args: tuple[Any, ...]
    memory: list[Tensor]

    def untouched(self) -> bool:
        """Whether everything around the arguments is as it was."""
        return all(bool((m[:GUARD] == POISON).all() and (m[-GUARD:] == POISON).all()) for m in self.memory)


def names() -> list[str]:
    """The ops that have a call."""
    return sorted({op for op, _ in calls()})


def of(op: str) -> list[Call]:
    return [call for call in calls() if call[0] == op]


def spec(op: str) -> list[Any]:
    """The schema's arguments."""
    return list(getattr(OPS, op).default._schema.arguments)


def written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def poison(op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments on the host, with nonsense in everything that the op must write before anybody reads it."""
    kept = {"squeeze": ("sizes",), "magnitude_stats": ("stats",)}.get(op, ())
    accumulate = any(s.name == "accumulate" and a for s, a in zip(spec(op), args, strict=True))
    done: list[Any] = []
    for s, a in zip(spec(op), args, strict=True):
        if written(s) and isinstance(a, Tensor):
            a = a.clone()
            if s.name == "status":
                a |= 4
            elif a.dtype is torch.uint8:
                a.fill_(POISON)
            elif s.name in kept or (s.name == "out" and not accumulate):
                a.fill_(-1 if not a.is_floating_point() else torch.nan)
        done.append(a)
    return tuple(done)


def copied(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same on the host; tables and the like are shared."""
    return tuple([t.clone() for t in a] if isinstance(a, list) else a.clone() if _moves(a) else a for a in args)


def _moves(a: Any) -> bool:
    return isinstance(a, Tensor) and a.dtype is not torch.int64


def place(op: str, args: tuple[Any, ...], device: torch.device | None = None) -> Placed:
    """The arguments of a call on the device."""
    device = device or DEVICE
    memory: list[Tensor] = []

    def move(t: Tensor) -> Tensor:
        t = t.contiguous()
        size = t.numel() * t.itemsize
        held = torch.full((size + 2 * GUARD,), POISON, dtype=torch.uint8, device=device)
        memory.append(held)
        inner = held[GUARD : GUARD + size].view(t.dtype).view(t.shape)
        inner.copy_(t)
        return inner

    placed: list[Any] = []
    for s, a in zip(spec(op), args, strict=True):
        if s.name in HOST or a is None:
            placed.append(a)
        elif isinstance(a, Tensor):
            placed.append(move(a))
        elif isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor):
            placed.append([move(t) for t in a])
        else:
            placed.append(a)
    return Placed(tuple(placed), memory)


def agree(op: str, found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    """Every tensor equal to the bit, those included that the op only reads; NaN equals NaN."""
    for s, a, b in zip(spec(op), found, expected, strict=True):
        several = isinstance(a, list)
        for x, y in zip(a if several else [a], b if several else [b], strict=True):
            if not isinstance(x, Tensor):
                continue
            x, y = x.cpu(), y.cpu()
            if op in LOOSE and x.is_floating_point():
                torch.testing.assert_close(x, y, rtol=LOOSE[op], atol=LOOSE[op] * float(y.abs().max()), equal_nan=True)
            else:
                assert same(x, y), f"compcomm.{op}: {s.name} differs: {_where(x, y)}"


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit; NaN equals NaN."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    different = _bits(a) != _bits(b)
    if a.is_floating_point():
        different &= ~(a.isnan() & b.isnan())
    return not bool(different.any())


def _bits(t: Tensor) -> Tensor:
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.itemsize]
    return t.contiguous().view(integer)


def _where(a: Tensor, b: Tensor) -> str:
    at = (_bits(a) != _bits(b)).reshape(-1).nonzero().view(-1)
    first = [(int(i), a.reshape(-1)[i].item(), b.reshape(-1)[i].item()) for i in at[:4]]
    return f"{len(at)} of {a.numel()}, (at, found, expected): {first}"


@contextmanager
def unwaiting() -> Iterator[None]:
    """Raises where the host waits for the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not find everything, says torch
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
