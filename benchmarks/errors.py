"""What a compressor loses and what it sends: one step of one gradient through encode and decode."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

import compcomm as cc
from compcomm.core.packing import Packing, pack
from compcomm.core.source import Source
from compcomm.core.state import State

DRAWS = 3


def synthetic(name: str, numel: int) -> dict[str, Tensor]:
    """``numel`` independent numbers as one matrix: "gaussian", or "student-t" of three degrees of freedom."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(numel, generator=draw)
    if name == "student-t":
        x /= (torch.randn(3, numel, generator=draw).square_().sum(0) / 3).sqrt_()
    side = 1 << (numel.bit_length() // 2)
    return {"x": x[: numel // side * side].view(-1, side)}


def flatten(named: dict[str, Tensor]) -> cc.Bucket:
    """All parameters as one bucket, in order."""
    layout = cc.Layout.of((name, t.shape) for name, t in named.items())
    return cc.Bucket(torch.cat([t.reshape(-1) for t in named.values()]).float(), layout)


class Trip:
    """A compressor at work on one layout: its buffers, and its memory of earlier steps as a route would keep it."""

    def __init__(self, compressor: cc.Compressor, layout: cc.Layout) -> None:
        self.compressor, self.layout = compressor, layout
        self.packing: Packing = pack(compressor, layout)
        self.wire = torch.zeros(self.packing.nbytes, dtype=torch.uint8)
        store = cc.Store(cc.AllGather(compressor))
        store.declare(layout)
        state = State(store, layout)
        coded = [row.segment for row in self.packing.coded]
        names = dict.fromkeys(name for s in coded for name in compressor.slots(s))
        self.hints = {name: state[name].flat for name in names}

    def encode(self, x: cc.Bucket, rng: cc.Rng, add: cc.Bucket | None = None) -> None:
        self.compressor.encode_(Source(x, add), rng, hints=self.hints, wire=self.wire, packing=self.packing)

    def decode(self, out: cc.Bucket, rng: cc.Rng) -> None:
        self.compressor.decode_(self.wire.unsqueeze(0), out, rng, self.packing)

    def sent(self) -> int:
        """Bytes of the sections that were written, used ones where their size varies; the message's header apart."""
        total = sum(4 * row.segment.numel for row in self.packing.exact)
        for row in self.packing.coded:
            if self.compressor.variable:
                total += int(self.wire[row.wire : row.wire + 4].view(torch.int32))
            else:
                total += -(-self.compressor.section(row.segment.numel) // 4) * 4
        return total


def measure(compressor: cc.Compressor, gradient: cc.Bucket, learns: int = 0, patience: float = 60.0) -> dict[str, Any]:
    """Relative squared error |x - C(x)|^2/|x|^2, cosine of x and C(x), bits sent per element: means over the draws.

    ``learns`` steps on the same gradient come before. What is not random is drawn once and checked by a second draw;
    there is no other draw when the first has taken ``patience`` seconds.
    """
    trip, numel = Trip(compressor, gradient.layout), gradient.layout.numel
    x, out = (cc.Bucket(torch.zeros_like(gradient.flat), gradient.layout) for _ in range(2))
    whole = _square(gradient.flat)
    found: list[tuple[float, float, float]] = []
    seconds = 0.0
    for step in range(learns + DRAWS):
        rng, begin = cc.Rng(0, step, 0), time.perf_counter()
        x.flat.copy_(gradient.flat)
        trip.encode(x, rng)
        if step < learns:
            continue
        trip.decode(out, rng)
        seconds += time.perf_counter() - begin
        lost, kept = _square(torch.sub(gradient.flat, out.flat, out=x.flat)), _square(out.flat)
        cosine = (whole + kept - lost) / (2 * (whole * kept) ** 0.5) if kept else 0.0
        found.append((lost / whole, cosine, 8 * trip.sent() / numel))
        if seconds > patience or (len(found) == 2 and found[0] == found[1]):
            break
    error, cosine, bits = (sum(column) / len(found) for column in zip(*found, strict=True))
    return {
        "numel": numel,
        "bits_per_element": bits,
        "relative_error": error,
        "cosine": cosine,
        "draws": len(set(found)),
        "seconds": seconds / len(found),
    }


def _square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
