"""What the selection of ``topk_select.py`` needs beside its kernels: sizes, a row's state, tiles and lists."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from ..scratch import scratch
from . import work

TILE = 4096
STRETCH = 4 * TILE  # elements to a program of the launches that mostly find nothing to do,
PART = 2048  # so many at a time
SAMPLE = 8192
CHUNK = 1024

# A row's state: int32 [64].
STATE = tl.constexpr(64)
LOW = tl.constexpr(0)  # what a candidate reaches
FOUND = tl.constexpr(1)  # candidates, also those that found no room in the list
WANTED = tl.constexpr(2)  # s
PREFIX = tl.constexpr(4)  # after r rounds: PREFIX + 2 r has the top bits of the s-th largest, the next entry its rank
SAMPLED = tl.constexpr(14)  # the same ten numbers for the sample of ``sampled.py``
LIMITS = tl.constexpr(32)  # its thresholds,
COUNTS = tl.constexpr(48)  # and how many elements reach each
BINS = tl.constexpr(256)
ROUNDS = tl.constexpr(4)
NOTHING = tl.constexpr(0x7FFFFFFF)  # above all magnitudes


class Plan(NamedTuple):
    """What follows from the table. ``rows``: int64 [rows, 3], first tile, where the list begins, its capacity."""

    tiles: work.Work
    stretches: work.Work
    rows: Tensor
    count: int
    candidates: int


class Lists(NamedTuple):
    """Scratch: ``state`` [rows, 64], ``bins`` [rows, 8, 256] (selection, sample), per tile its part of the row's list
    and its tally, and the lists: values and places inside their tiles."""

    state: Tensor
    bins: Tensor
    begin: Tensor
    length: Tensor
    tally: Tensor
    value: Tensor
    place: Tensor


def plan(table: Tensor, device: torch.device) -> Plan:
    def make() -> Plan:
        lines = table.cpu().numpy()
        numel, k = lines[:, 2], lines[:, 6]
        tiles = -(-numel // TILE)
        room = 4 * k + numel // 128 + TILE  # about twice what the guess lets through
        room = np.where(2 * room < numel, room, 0)
        columns = (np.cumsum(tiles) - tiles, np.cumsum(room) - room, room)
        rows = torch.from_numpy(np.stack(columns, 1).astype(np.int64)).contiguous()
        return Plan(
            work.tiles(table, TILE, device), work.tiles(table, STRETCH, device),
            rows.to(device, non_blocking=True), len(lines), max(1, int(room.sum())),
        )  # fmt: skip

    return work.kept(table, ("top-k plan", device), make)


def lists(p: Plan, device: torch.device) -> Lists:
    def ints(purpose: str, numel: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return scratch(f"top-k {purpose}", max(1, numel), dtype, device)

    return Lists(
        ints("state", p.count * STATE.value),
        ints("bins", p.count * 2 * ROUNDS.value * BINS.value),
        ints("begin", p.tiles.programs),
        ints("length", p.tiles.programs),
        ints("tally", p.tiles.programs, torch.int64),
        ints("value", p.candidates, torch.float32),
        ints("place", p.candidates, torch.int16),
    )
