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
    OPS,
    agree,
    call,
    elements,
    encoding,
    make,
    nbytes,
    same,
    table_of,
    using,
)

SIZES = (1, 2, 15, 17, 63, 64, 65, 1000, 1025, 4096, 65535, 65536, 65537)
X, WIRE, STATUS, HINT = 0, 2, 4, 7  # the op's arguments


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_equal_the_reference(kind: str) -> None:
    for n in SIZES:
        ratios = (0.0, 0.01, 1.0) if n > 10_000 else (0.0, 0.001, 0.01, 0.1, 0.5, 0.6, 1.0)
        for number, k in enumerate(sorted({min(n, max(1, round(n * ratio))) for ratio in ratios})):
            table = table_of([(n, k), (0, 0), (min(n, 70), min(n, 7))])
            x, add = make("nonfinite" if number == 1 else "normal", elements(table), 1), make(kind, elements(table), 2)
            decay, add_scale = ((1.0, 1.0), (0.0, 1.0), (0.9, -0.25))[number % 3]
            agree(
                native.isas(), "topk_encode", *encoding(table, x, add, torch.zeros(3), decay=decay, add_scale=add_scale)
            )
            if number == 1:
                agree(native.isas(), "topk_encode", *encoding(table, add, None, torch.zeros(3), decay=0.5))


@pytest.mark.parametrize("implementation", COMPILED)
@pytest.mark.parametrize("n", [1000, 4096, 100_000])
def test_the_hint_changes_nothing_but_itself(implementation: str, n: int) -> None:
    k = n // 50
    table = table_of([(n, k), (n // 3, k)])
    for kind in ("normal", "ascending", "ties", "zero"):
        x, add = torch.zeros(elements(table)), make(kind, elements(table))
        right = call("reference", "topk_encode", *encoding(table, x, add, torch.zeros(2)))
        for factor in (1.0, 0.99, 1.2, 0.5, 1e-20, 1e30, 0.0, math.nan, math.inf, -1.0):
            found = call(implementation, "topk_encode", *encoding(table, x, add, right[HINT] * factor))
            assert all(same(found[i], right[i]) for i in (X, WIRE, STATUS, HINT)), (kind, factor)
    assert all(right[HINT] == 0)


def test_data_that_knows_where_the_sample_looks() -> None:
    """A sample that sees only large elements guesses far too high, one that sees only small ones far too low."""
    n, k = 200_001, 30_000
    lines = n // 1024
    cell = n // lines
    sampled = torch.zeros(n + 1, dtype=torch.bool)
    for line in range(lines):
        at = line * cell + (line * 0x9E3779B9 & 0xFFFFFFFF) % (cell - 15)
        sampled[at : at + 16] = True
    table = table_of([(n, k)], gap=0)
    table[:, 1] = 0
    noise = make("ascending", n + 1)
    for inside, outside in ((1e6, 1.0), (1e-6, 1.0), (0.0, 1.0), (1.0, 0.0)):
        y = noise * torch.where(sampled, inside, outside)
        agree(native.isas(), "topk_encode", *encoding(table, torch.zeros(n + 1), y, torch.zeros(1)))


def naive(y: list[float], k: int) -> tuple[list[int], bytes]:
    """The k largest and their section, by sorting pairs."""
    order = sorted(range(len(y)), key=lambda i: (-abs(y[i]), i))
    kept = sorted(order[:k])
    counts = [sum(i // 65536 == block for i in kept) for block in range(-(-len(y) // 65536))]
    section = struct.pack(f"<{len(counts)}I{k}H", *counts, *(i % 65536 for i in kept)) + b"\0\0" * (k % 2)
    return kept, section + struct.pack(f"<{k}f", *(y[i] for i in kept))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (10, 3), (10, 10), (1000, 100), (65540, 7), (131073, 101)])
def test_the_wire_to_the_bit(n: int, k: int) -> None:
    """The reference's; that kernels write the same is tested above."""
    for kind in ("normal", "ties", "equal", "denormal") if n < 131073 else ("normal", "ties"):
        y, table = make(kind, n), torch.tensor([[0, -1, n, 4, 0, 0, k, 0]])
        kept, section = naive(y.tolist(), k)
        x, _, wire, *_, hint = call("reference", "topk_encode", *encoding(table, y, None, torch.zeros(1)))
        assert bytes(wire[4 : 4 + len(section)].tolist()) == section
        assert hint.item() == min(abs(float(y[i])) for i in kept)
        assert torch.equal(x, y.index_fill(0, torch.tensor(kept), 0.0)) and not bool(torch.signbit(x[kept]).any())


def test_nothing_is_lost_and_nothing_else_is_touched() -> None:
    table = table_of([(1000, 100), (70_000, 700), (0, 0), (50, 50)])
    x, add = make("normal", elements(table), 1), make("normal", elements(table), 2)
    left, _, wire, *_ = agree(native.isas(), "topk_encode", *encoding(table, x, add, None))
    sent, skip = torch.full((elements(table),), 7.0), torch.zeros(3, dtype=torch.uint8)
    with using("reference"):
        OPS.topk_decode(wire[None], table, skip, sent, 1.0, False)
    inside, used = torch.zeros(len(x), dtype=torch.bool), torch.zeros(nbytes(table), dtype=torch.bool)
    for row in (topk.Row(*line) for line in table.tolist()):
        here = slice(row.x, row.x + row.numel)
        inside[here] = used[row.wire : row.wire + topk.section(row)] = True
        assert torch.equal(left[here] + sent[here], x[here] + add[row.add : row.add + row.numel])
    assert same(left[~inside], x[~inside]) and bool((sent[~inside] == 7).all()) and bool((wire[~used] == 0xA5).all())


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


@pytest.mark.parametrize("implementation", ("reference", *native.isas()[-1:]))
@pytest.mark.parametrize("op", ["topk_encode", "topk_some_encode", "topk_sampled_encode", "randk_encode"])
def test_a_table_that_does_not_fit_is_explained(op: str, implementation: str) -> None:
    some, one = (torch.zeros(1).long(), torch.zeros(1)), torch.ones(1)
    tail = {"topk_encode": (None,), "topk_some_encode": some, "topk_sampled_encode": (1, 2)}.get(op, (one, 1))
    tensors = torch.zeros(10), torch.zeros(10), torch.zeros(12 if op == "randk_encode" else 24, dtype=torch.uint8)
    for column, value, words in (
        *((6, 11, "k"), (6, -1, "k"), (2, -1, "numel"), (2, 2**41, "numel"), (7, 1, "index")),
        *((0, 1, "outside x"), (1, 4, "outside add"), (3, 4, "outside the wire")),
    ):
        table = torch.tensor([[0, 0, 10, 0, 0, 0, 3, 0]])
        table[0, column] = value
        with using(implementation), pytest.raises(ValueError, match=rf"{op}: table row 0.*{words}"):
            getattr(OPS, op)(*tensors, table, torch.zeros(2, dtype=torch.uint8), 1.0, 1.0, *tail)


def test_threads_do_not_share_their_candidates() -> None:
    table = table_of([(50_000, 500), (4096, 100)])
    inputs = [make("normal", elements(table), seed) for seed in range(8)]

    def work(x: Tensor) -> tuple[Any, ...]:
        for _ in range(20):
            found = encoding(table, x.clone(), None, None)
            OPS.topk_encode(*found)
        return found

    with ThreadPoolExecutor(4) as pool:
        for x, found in zip(inputs, pool.map(work, inputs), strict=True):
            due = call("reference", "topk_encode", *encoding(table, x, None, None))
            assert same(found[X], due[X]) and same(found[WIRE], due[WIRE])
