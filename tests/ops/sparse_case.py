"""What the tests of the sparse ops share: tables with gaps, inputs of many kinds, implementations to compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from compcomm.ops import backend, native
from compcomm.ops.reference import topk

OPS = torch.ops.compcomm
IMPLEMENTATIONS = ("reference", "baseline", "avx2", "avx512")
COMPILED = IMPLEMENTATIONS[1:]
KINDS = ("normal", "ties", "equal", "zero", "negative zero", "denormal", "huge", "ascending", "one", "nonfinite")


@contextmanager
def using(implementation: str) -> Iterator[None]:
    """Run the ops on this implementation; skips the test where the machine does not have it."""
    if implementation in ("reference", "triton", "cuda"):
        with backend(implementation):
            yield
        return
    if implementation not in native.isas():
        pytest.skip(f"no {implementation} here")
    before = native.isa()
    native.set_isa(implementation)
    try:
        with backend("native"):
            yield
    finally:
        native.set_isa(before)


def make(kind: str, n: int, seed: int = 0) -> Tensor:
    """n floats with the property that the kind names."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=g)
    pick = torch.rand(n, generator=g)
    if kind == "ties":
        return torch.round(x)
    if kind == "equal":
        return torch.where(x < 0, -1.5, 1.5)
    if kind == "zero":
        return torch.zeros(n)
    if kind == "negative zero":
        return -torch.zeros(n)
    if kind == "denormal":
        return (pick * 1000).to(torch.int32).view(torch.float32) * torch.where(x < 0, -1.0, 1.0)
    if kind == "huge":
        return x * 1e38
    if kind == "ascending":
        return x.abs().sort().values
    if kind == "one":
        return torch.where(torch.arange(n) == n // 2, -3.0, 0.0)
    if kind == "nonfinite":
        x = torch.where(pick < 0.02, torch.inf, x)
        x = torch.where((pick > 0.02) & (pick < 0.04), -torch.inf, x)
        return torch.where(pick > 0.97, torch.nan, x)
    return x


def rows_of_kinds(table: Tensor, kinds: Sequence[str], seed: int = 0) -> tuple[Tensor, Tensor]:
    """x and add, a row of each kind, which come round: so one call meets them all. What is not finite is in the
    gradient: add, or x where a row has no add."""
    size = int((table[:, 0].clamp(min=0) + table[:, 2]).max()) + 5
    x, add = make("normal", size, seed), make("normal", size, seed + 1)
    for i, (at, other, n, *_) in enumerate(table.tolist()):
        kind = kinds[i % len(kinds)]
        if other >= 0:
            add[other : other + n] = make(kind, n, seed + i)
        if other < 0 or kind != "nonfinite":
            x[at : at + n] = make(kind, n, seed + 50 + i)
    return x, add


def table_of(shapes: list[tuple[int, int]], *, add: bool = True, gap: int = 3) -> Tensor:
    """Rows of (numel, k) with ``gap`` unused elements and 4*gap unused bytes around each; rows 0 and 2 share a flag."""
    lines: list[list[int]] = []
    at, byte = gap, 4 * gap
    for number, (numel, k) in enumerate(shapes):
        row = topk.Row(at, at + 1 if add else -1, numel, byte, 1000 * number, 77 - number % 4 * 2**61, k, number % 2)
        lines.append(list(row))
        at += numel + gap
        byte += topk.section(row) + 4 * gap
    return torch.tensor(lines)


def elements(table: Tensor, gap: int = 3) -> int:
    """The length of x, add or out that the table needs, a gap included."""
    return int(table[-1, 0] + table[-1, 2]) + gap + 1


def nbytes(table: Tensor, gap: int = 3) -> int:
    """The length of a message."""
    return int(table[-1, 3]) + topk.section(topk.Row(*table[-1].tolist())) + 4 * gap


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit: NaN equals NaN, and -0 differs from 0."""
    return a.dtype is b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def copied(t: Tensor) -> Tensor:
    """In memory of its own, with the same strides and alignment (a clone's memory begins where that suits)."""
    return torch.empty(0, dtype=t.dtype).set_(t.untyped_storage().clone(), t.storage_offset(), t.size(), t.stride())


def call(implementation: str, op: str, *args: Any) -> list[Any]:
    """The arguments after one call on copies of them."""
    given = [copied(a) if isinstance(a, Tensor) else a for a in args]
    with using(implementation):
        getattr(OPS, op)(*given)
    return given


def agree(implementations: Iterable[str], op: str, *args: Any) -> list[Any]:
    """The arguments after the reference's call: those of every implementation are the same, also what it only reads."""
    truth = call("reference", op, *args)
    for implementation in implementations:
        for i, (due, found) in enumerate(zip(truth, call(implementation, op, *args), strict=True)):
            assert not isinstance(due, Tensor) or same(due, found), (implementation, op, i)
    return truth


def encoding(
    table: Tensor, x: Tensor, add: Tensor | None, *tail: Any, decay: float = 1.0, add_scale: float = 1.0, odd: int = 0
) -> tuple[Any, ...]:
    """Arguments of a sparse encoder, with poisoned buffers; ``odd``: bytes before the message."""
    wire = torch.full((nbytes(table) + odd,), 0xA5, dtype=torch.uint8)[odd:]
    return (x, add, wire, table, torch.tensor([0, 0, 4, 0], dtype=torch.uint8), decay, add_scale, *tail)
