"""Pieces of parameters, as a sharded host's buffer holds them: each is treated alone, whatever lies beside it."""

from __future__ import annotations

import torch

from ..core.layout import Layout, Segment
from ..core.reducer import Reducer
from ..transports.simulator import Simulator
from .errors import demand, same_bits
from .inputs import model_layout
from .simulated import gradients, pack

INF = float("inf")


def cut() -> tuple[Layout, Layout]:
    """Every parameter of the model in two pieces of whole rows: the first ones, and the second ones."""
    parts: tuple[list[Segment], list[Segment]] = ([], [])
    at = [0, 0]
    for s in model_layout().segments:
        row = s.numel // s.shape[0] if len(s.shape) > 1 and s.numel else 1
        middle = -(-2 * (s.numel // row) // 3) * row
        for i, (low, high) in enumerate(((0, middle), (middle, s.numel))):
            if low < high:
                parts[i].append(s.piece(low, high)._replace(start=at[i], stop=at[i] + high - low))
                at[i] += high - low
    return Layout(parts[0]), Layout(parts[1])


def together(first: Layout, second: Layout) -> Layout:
    """Both in one buffer: two pieces of most parameters, not side by side."""
    moved = (s._replace(start=s.start + first.numel, stop=s.stop + first.numel) for s in second.segments)
    return Layout([*first.segments, *moved])


def treats_pieces_alone(r: Reducer) -> None:
    """Two pieces of a parameter in one bucket give the means and leave the memory that they do in a bucket each, to the
    bit, bad steps included. ``layout.segments`` has a name more than once then, and ``views()`` raises."""
    world, halves = 2, cut()
    both = together(*halves)
    one, two = Simulator(r, world, seed=17), Simulator(r, world, seed=17)
    for t in range(5):
        given, bad = gradients(world, t), t == 2
        if bad:
            given[1]["head"].view(-1)[[5, -1]] = INF  # in either bucket
        mean = one.step([[pack(g, both)] for g in given])[0][0].flat
        means = two.step([[pack(g, layout) for layout in halves] for g in given])[0]
        apart = torch.cat([b.flat for b in means])
        for s in both.segments:
            alike = bad or same_bits(mean[s.start : s.stop], apart[s.start : s.stop])
            demand(alike, r, f"the mean of {_told(s)} depends on the piece beside it, in step {t}.")
        for a, b in zip(one.stores, two.stores, strict=True):
            left, right = a.state_dict(), b.state_dict()
            for slot in left:
                for name, held in left[slot].items():
                    alike = same_bits(held, right[slot][name])
                    demand(alike, r, f"slot {slot!r} of {name!r} depends on the piece beside it, in step {t}: go "
                           f"over layout.segments, which may have a name more than once.")  # fmt: skip


def _told(s: Segment) -> str:
    return f"elements {s.offset} to {s.offset + s.numel} of {s.name!r}"
