"""Top-k, the encoder: kernels answer to the reference, and that to a sort of (|y|, index) in plain Python."""

from __future__ import annotations

import math
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from compcomm.ops.reference import topk
from tests.ops.sparse_case import (
    COMPILED,
    IMPLEMENTATIONS,
    KINDS,
    elements,
    make,
    nbytes,
    same,
    table_of,
    topk_encode,
    using,
)

OPS = torch.ops.compcomm
SIZES = (1, 2, 15, 17, 63, 64, 65, 1000, 1025, 4096, 65535, 65536, 65537, 200001)


def agree(x: Tensor, add: Tensor | None, table: Tensor, **options: Any) -> None:
    truth = topk_encode("reference", x, add, table, **options)
    for implementation in native.isas():
        result = topk_encode(implementation, x, add, table, **options)
        for name, tensor in truth.items():
            assert same(tensor, result[name]), (implementation, name, table, options)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_the_reference(kind: str) -> None:
    for n in SIZES:
        ratios = (0.0, 0.01, 1.0) if n > 10_000 else (0.0, 0.001, 0.01, 0.1, 0.5, 0.6, 1.0)
        for number, k in enumerate(sorted({min(n, max(1, round(n * ratio))) for ratio in ratios})):
            table = table_of([(n, k), (0, 0), (min(n, 70), min(n, 7))])
            x, add = make("nonfinite" if number == 1 else "normal", elements(table), 1), make(kind, elements(table), 2)
            decay, add_scale = ((1.0, 1.0), (0.0, 1.0), (0.9, -0.25))[number % 3]
            agree(x, add, table, decay=decay, add_scale=add_scale)
            if number == 1:
                agree(add, None, table, decay=0.5)


@pytest.mark.parametrize("implementation", COMPILED)
@pytest.mark.parametrize("n", [1000, 4096, 65536, 100_000])
def test_the_hint_changes_nothing_but_itself(implementation: str, n: int) -> None:
    k = n // 50
    table = table_of([(n, k), (n // 3, k)])
    for kind in ("normal", "ascending", "ties", "zero"):
        x, add = torch.zeros(elements(table)), make(kind, elements(table))
        right = topk_encode("reference", x, add, table)
        for factor in (1.0, 0.99, 1.01, 1.2, 0.5, 1e-20, 1e30, 0.0, math.nan, math.inf, -1.0):
            result = topk_encode(implementation, x, add, table, hint=right["hint"] * factor)
            assert all(same(result[name], right[name]) for name in right), (kind, factor)
    assert all(right["hint"] == 0)


def test_data_that_knows_where_the_sample_looks() -> None:
    """A sample that sees only large elements guesses far too high, one that sees only small ones far too low."""
    n, k = 200_001, 30_000
    lines = n // 1024
    cell = n // lines
    starts = [line * cell + (line * 0x9E3779B9 & 0xFFFFFFFF) % (cell - 15) for line in range(lines)]
    sampled = torch.zeros(n, dtype=torch.bool)
    for at in starts:
        sampled[at : at + 16] = True
    table = table_of([(n, k)], gap=0)
    table[:, 1] = 0
    noise = make("ascending", n + 1)
    for inside, outside in ((1e6, 1.0), (1e-6, 1.0), (0.0, 1.0), (1.0, 0.0)):
        y = noise * torch.where(torch.cat([sampled, sampled[:1]]), inside, outside)
        agree(torch.zeros(n + 1), y, table)


def naive(y: list[float], k: int) -> tuple[list[int], bytes]:
    """The k largest and their section, by sorting pairs."""
    order = sorted(range(len(y)), key=lambda i: (-abs(y[i]), i))
    kept = sorted(order[:k])
    counts = [sum(i // 65536 == block for i in kept) for block in range(-(-len(y) // 65536))]
    section = struct.pack(f"<{len(counts)}I{k}H", *counts, *(i % 65536 for i in kept)) + b"\0\0" * (k % 2)
    return kept, section + struct.pack(f"<{k}f", *(y[i] for i in kept))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (10, 3), (10, 10), (1000, 100), (65540, 7), (131073, 101)])
def test_the_wire_to_the_bit(implementation: str, n: int, k: int) -> None:
    for kind in ("normal", "ties", "equal", "denormal"):
        x = make(kind, n)
        y, left, table = x.tolist(), x.clone(), torch.tensor([[0, -1, n, 4, 0, 0, k, 0]])
        kept, section = naive(y, k)
        left[kept] = 0.0
        wire, status = torch.full((nbytes(table, 1),), 9, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
        hint = torch.zeros(1)
        with using(implementation):
            OPS.topk_encode(x, None, wire, table, status, 1.0, 1.0, hint)
        assert bytes(wire[4:-4].tolist()) == section
        assert hint.item() == min(abs(y[i]) for i in kept)
        assert torch.equal(x, left) and not bool(torch.signbit(x[kept]).any())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nothing_is_lost_and_nothing_else_is_touched(implementation: str) -> None:
    table = table_of([(5000, 50), (70_000, 700), (40, 40)])
    x, add = make("normal", elements(table), 1), make("normal", elements(table), 2)
    result = topk_encode(implementation, x, add, table)
    sent, skip = torch.full_like(x, 7.0), torch.zeros(2, dtype=torch.uint8)
    with using(implementation):
        OPS.topk_decode(result["wire"][None], table, skip, sent, 1.0, False)
    inside = torch.zeros(len(x), dtype=torch.bool)
    for row in (topk.Row(*line) for line in table.tolist()):
        here = slice(row.x, row.x + row.numel)
        inside[here] = True
        assert torch.equal(result["x"][here] + sent[here], x[here] + add[row.add : row.add + row.numel])
    assert same(result["x"][~inside], x[~inside]) and bool((sent[~inside] == 7).all())
    used = torch.zeros(nbytes(table), dtype=torch.bool)
    for row in (topk.Row(*line) for line in table.tolist()):
        used[row.wire : row.wire + topk.section(row)] = True
    assert bool((result["wire"][~used] == 0xA5).all())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_non_finite_numbers_enter_neither_residual_nor_wire(implementation: str) -> None:
    inf, nan = math.inf, math.nan
    table = torch.tensor([[0, 0, 6, 0, 0, 0, 2, 0], [6, 6, 2, 20, 0, 0, 1, 1], [8, -1, 2, 32, 0, 0, 1, 2]])
    x = torch.tensor([1.0, 2.0, 3.0, 3e38, inf, nan, 1.0, 1.0, -0.0, 0.0])
    add = torch.tensor([inf, nan, 1.0, 3e38, 1.0, 1.0, -0.0, 0.0, 5.0, 5.0])
    wire, status = torch.zeros(64, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)
    with using(implementation):
        OPS.topk_encode(x, add, wire, table, status, 1.0, 1.0, None)
    assert x.tolist() == [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert wire[4:8].view(torch.int16).tolist() == [2, 3]
    assert wire[8:16].view(torch.float32).tolist() == [4.0, torch.tensor(3e38).item()]
    assert status.tolist() == [1, 1, 0, 0]  # row 1: zeros of both signs; row 2: x is the gradient, and it is zero


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        *((6, 11, "k"), (6, -1, "k"), (2, -1, "numel"), (2, 2**40, "numel"), (7, 1, "index")),
        *((0, 1, "outside x"), (1, 4, "outside add"), (3, 4, "outside the wire")),
    ],
)
def test_a_table_that_does_not_fit_is_explained(implementation: str, column: int, value: int, words: str) -> None:
    table = torch.tensor([[0, 0, 10, 0, 0, 0, 3, 0]])
    table[0, column] = value
    tensors = torch.zeros(10), torch.zeros(10), torch.zeros(24, dtype=torch.uint8)
    with using(implementation), pytest.raises(ValueError, match=rf"topk_encode: table row 0.*{words}"):
        OPS.topk_encode(*tensors, table, torch.zeros(2, dtype=torch.uint8), 1.0, 1.0, None)


def test_threads_do_not_share_their_candidates() -> None:
    table = table_of([(50_000, 500), (4096, 100)])
    inputs = [make("normal", elements(table), seed) for seed in range(8)]
    truth = [topk_encode("reference", x, None, table) for x in inputs]

    def work(x: Tensor) -> dict[str, Tensor]:
        for _ in range(20):
            left, wire = x.clone(), torch.full((nbytes(table),), 0xA5, dtype=torch.uint8)
            OPS.topk_encode(left, None, wire, table, torch.zeros(4, dtype=torch.uint8), 1.0, 1.0, None)
        return {"x": left, "wire": wire}

    with ThreadPoolExecutor(4) as pool:
        for found, due in zip(pool.map(work, inputs), truth, strict=True):
            assert same(found["x"], due["x"]) and same(found["wire"], due["wire"])


def test_opcheck() -> None:
    table = table_of([(1000, 30), (40, 3)])
    x, add, hint = make("normal", elements(table)), make("normal", elements(table)), torch.zeros(2)
    wire, status = torch.zeros(nbytes(table), dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    for arguments in ((x, add, wire, table, status, 1.0, 1.0, hint), (x, None, wire, table, status, 1.0, 1.0, None)):
        torch.library.opcheck(OPS.topk_encode, arguments, test_utils=("test_schema", "test_faketensor"))
