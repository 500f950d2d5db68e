"""Encode and decode of each family on one long vector, as multiples of memcpy of the same vector in the same run."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import torch
from errors import Trip
from methods import Family

import compcomm as cc
from compcomm.report.metrics import timing

SIDE = 4096
BLOCK = 4096  # of the Hadamard transform alone
SLOWEST = 1.0  # seconds of one call, beyond which a call on so many numbers is not worth the wait
Row = dict[str, Any]


class Vectors:
    """A residual, a gradient and a mean, as one parameter of rows of 4096."""

    def __init__(self, numel: int) -> None:
        draw = torch.Generator().manual_seed(0)
        layout = cc.Layout.of([("x", (numel // SIDE, SIDE))])
        self.numel = layout.numel
        self.start = torch.randn(self.numel, generator=draw) * 0.1
        self.add = cc.Bucket(torch.randn(self.numel, generator=draw), layout)
        self.x = cc.Bucket(self.start.clone(), layout)
        self.out = cc.Bucket(torch.zeros(self.numel), layout)

    def copy(self) -> float:
        """Seconds of one memcpy of the vector."""
        begin = time.perf_counter()
        ctypes.memmove(self.out.flat.data_ptr(), self.add.flat.data_ptr(), 4 * self.numel)
        return time.perf_counter() - begin


def measure(calls: dict[str, Callable[[], Any]], v: Vectors, repeats: int, seconds: float) -> Row:
    """Medians of rounds, each a memcpy before each of the calls, so that a busy machine slows them alike.

    Two rounds to warm up, then at most ``repeats`` and about as many seconds, three at least.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    copies: list[float] = []
    begin = time.perf_counter()
    while len(copies) < 5 * len(calls) or (
        len(copies) < (repeats + 2) * len(calls) and time.perf_counter() - begin < seconds
    ):
        for name, call in calls.items():
            copies.append(v.copy())
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    memcpy = timing(copies[2 * len(calls) :])
    row: Row = {"numel": v.numel, "repeats": len(copies) // len(calls) - 2, "memcpy_seconds": memcpy.median}
    for name, all_seconds in taken.items():
        found = timing(all_seconds[2:])
        row |= {
            f"{name}_seconds": found.median,
            f"{name}_spread": found.spread,
            f"{name}_memcpy_ratio": found.median / memcpy.median,
        }
    return row


def family(of: Family, v: Vectors, small: Vectors, repeats: int, seconds: float = 2.0) -> Row:
    """Speed of the family's representative; on the small vector, or not at all, where it is slow. Says so in "note"."""
    if of.speed is None:
        return {"family": of.name, "note": f"not measured: {of.why}"}
    compressor = cc.parse(of.texts[of.speed])
    row: Row = {"family": of.name, "compressor": repr(compressor), "goal": of.goal}
    begin = time.perf_counter()
    _round(compressor, small)
    each = (time.perf_counter() - begin) / 2
    if each > SLOWEST:
        return row | {"note": f"not measured: a call takes {each:.1f} s on {small.numel:,} numbers"}
    if each * v.numel / small.numel > SLOWEST:
        row["note"] = f"on {small.numel:,} numbers only, because it is slow"
        v = small
    v.x.flat.copy_(v.start)
    trip = Trip(compressor, v.add.layout)
    calls = {
        "encode": lambda: trip.encode(v.x, cc.Rng(), v.add),
        "decode": lambda: trip.decode(v.out, cc.Rng()),
    }
    return row | measure(calls, v, repeats, seconds)


def _round(compressor: cc.Compressor, v: Vectors) -> None:
    trip = Trip(compressor, v.add.layout)
    trip.encode(v.x, cc.Rng(), v.add)
    trip.decode(v.out, cc.Rng())


def hadamard(v: Vectors, repeats: int, seconds: float = 2.0) -> list[Row]:
    """The transform alone, gradient added, and back, in blocks of 4096; nothing where this build lacks it."""
    ops = torch.ops.compcomm
    if not hasattr(ops, "hadamard_forward"):
        return []
    table = torch.tensor([[0, 0, v.numel, 0, 0, 1, 0, 0]])
    z, x, add, out = torch.zeros(4 * v.numel, dtype=torch.uint8), v.x.flat, v.add.flat, v.out.flat
    status, skip, wires = torch.zeros(2, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8), z.unsqueeze(0)
    calls = {
        "encode": lambda: ops.hadamard_forward(x, add, z, table, status, 1.0, 1.0, BLOCK, 0),
        "decode": lambda: ops.hadamard_inverse(wires, table, skip, out, 1.0, False, BLOCK, 0),
    }
    x.copy_(v.start)
    row: Row = {"family": "Hadamard alone", "compressor": f"blocks of {BLOCK}", "goal": 3.0}
    return [row | measure(calls, v, repeats, seconds)]
