"""Top-k: the kernels answer to the reference, and the reference answers to a sort of (|y|, index) in plain Python."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from compcomm.ops.reference import topk
from tests.ops.sparse_case import COMPILED, IMPLEMENTATIONS, KINDS, elements, make, nbytes, same, table_of, using

OPS = torch.ops.compcomm
SIZES = (1, 2, 15, 17, 63, 64, 65, 1000, 1025, 4096, 65535, 65536, 65537, 200001)


def encode(implementation: str, x: Tensor, add: Tensor | None, table: Tensor, **options: Any) -> dict[str, Tensor]:
    """All outputs of one call on copies of its inputs, buffers poisoned."""
    result = {
        "x": x.clone(),
        "wire": torch.full((nbytes(table),), 0xA5, dtype=torch.uint8),
        "status": torch.tensor([0, 0, 4, 0], dtype=torch.uint8),
        "hint": options.get("hint", torch.zeros(len(table))).clone(),
    }
    with using(implementation):
        OPS.topk_encode(
            result["x"], add, result["wire"], table, result["status"],
            options.get("decay", 1.0), options.get("add_scale", 1.0), result["hint"],
        )  # fmt: skip
    return result


def agree(x: Tensor, add: Tensor | None, table: Tensor, **options: Any) -> None:
    truth = encode("reference", x, add, table, **options)
    for implementation in native.isas():
        result = encode(implementation, x, add, table, **options)
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
        right = encode("reference", x, add, table)
        for factor in (1.0, 0.99, 1.01, 1.2, 0.5, 1e-20, 1e30, 0.0, math.nan, math.inf, -1.0):
            result = encode(implementation, x, add, table, hint=right["hint"] * factor)
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
    result = encode(implementation, x, add, table)
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


def messages(table: Tensor, count: int) -> Tensor:
    """Valid messages, each with other kept elements, padded to a stride."""
    wires = torch.zeros(count, nbytes(table) + 12, dtype=torch.uint8)
    for m in range(count):
        add = make("ties" if m % 2 else "normal", elements(table), m)
        wires[m, : nbytes(table)] = encode("reference", torch.zeros(elements(table)), add, table)["wire"]
    return wires[:, : nbytes(table)]


@pytest.mark.parametrize("implementation", COMPILED)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 33])
def test_decoding_equals_the_reference(implementation: str, count: int) -> None:
    table = table_of([(1000, 30), (0, 0), (65537, 650), (65536, 1), (131072, 2000)])
    wires, before = messages(table, count), make("normal", elements(table), 99)
    for accumulate in (False, True):
        for skip in ([0, 0], [0, 1]):
            for absent in (None, 0, 4):
                chosen = table.clone()
                if absent is not None:
                    chosen[absent, 0] = -1
                out, skipped = {}, torch.tensor(skip, dtype=torch.uint8)
                for name in ("reference", implementation):
                    out[name] = before.clone()
                    with using(name):
                        OPS.topk_decode(wires, chosen, skipped, out[name], 0.3, accumulate)
                assert same(out["reference"], out[implementation])
    assert not same(out["reference"], before)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_decoding_adds_messages_that_overlap(implementation: str) -> None:
    add = torch.tensor([5.0, 0.0, 4.0, 1.0])
    table = torch.tensor([[0, 0, 4, 0, 0, 0, 2, 0]])
    wires = torch.zeros(2, 16, dtype=torch.uint8)
    for m, y in enumerate((add, add.flip(0))):
        with using(implementation):
            OPS.topk_encode(torch.zeros(4), y, wires[m], table, torch.zeros(2, dtype=torch.uint8), 1.0, 1.0, None)
    out, skip = torch.full((4,), 100.0), torch.zeros(1, dtype=torch.uint8)
    with using(implementation):
        OPS.topk_decode(wires, table, skip, out, 0.5, False)
        assert out.tolist() == [2.5, 2.0, 2.0, 2.5]
        OPS.topk_decode(wires, table, skip, out, 0.5, True)
        assert out.tolist() == [5.0, 4.0, 4.0, 5.0]
        OPS.topk_decode(wires, table, skip + 1, out, 0.5, True)
        assert out.tolist() == [5.0, 4.0, 4.0, 5.0]
        OPS.topk_zero(wires[:1], table, out)
        assert out.tolist() == [0.0, 4.0, 0.0, 5.0]
        OPS.topk_decode(wires, table, skip + 1, out, 0.5, False)
        assert out.tolist() == [0.0] * 4


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("byte", "value"),
    [(0, 31), (0, 29), (3, 0x80), (4 + 2, 0), (4 + 58, 0xFF), (4 + 59, 0x80)],
    ids=["count too large", "count too small", "count negative", "repeated", "outside", "far outside"],
)
def test_a_corrupt_message_is_refused_whole(implementation: str, byte: int, value: int) -> None:
    table = table_of([(50, 50), (1000, 30)])
    wires = messages(table, 3)
    begin = int(table[1, 3])
    if byte == 4 + 2:
        wires[1, begin + 6 : begin + 8] = wires[1, begin + 4 : begin + 6]
    else:
        wires[1, begin + byte] = value
    if byte == 4 + 58:
        wires[1, begin + 4 + 59] = 3  # offset 0x3ff = 1023 of 1000
    out, skip = torch.full((elements(table),), 5.0), torch.zeros(2, dtype=torch.uint8)
    with using(implementation):
        with pytest.raises(RuntimeError, match=r"topk_decode: message 1, table row 1: .*corrupt"):
            OPS.topk_decode(wires, table, skip, out, 1.0, False)
        with pytest.raises(RuntimeError, match=r"topk_zero: message 0, table row 1: .*corrupt"):
            OPS.topk_zero(wires[1:2], table, out)
        assert bool((out == 5.0).all())
        skip[1] = 1  # what nobody decodes is not looked at
        OPS.topk_decode(wires, table, skip, out, 1.0, True)


@pytest.mark.parametrize("implementation", COMPILED)
def test_random_corruption_never_leaves_the_row(implementation: str) -> None:
    """Kernel and reference accept and refuse the same messages; what is accepted decodes to the same bits."""
    table = table_of([(1000, 5), (65600, 6)])
    good, refused = messages(table, 2), 0
    g = torch.Generator().manual_seed(5)
    for _ in range(300):
        wires = good.clone()
        at = torch.randint(nbytes(table), (3,), generator=g)
        wires[1, at] = torch.randint(256, (3,), generator=g, dtype=torch.uint8)
        out = []
        for name in ("reference", implementation):
            target = torch.zeros(elements(table))
            with using(name):
                try:
                    OPS.topk_decode(wires, table, torch.zeros(2, dtype=torch.uint8), target, 1.0, True)
                except RuntimeError:
                    refused += 1
            out.append(target)
        assert same(*out)
    assert 0 < refused < 600 and refused % 2 == 0


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


def test_opcheck() -> None:
    table = table_of([(1000, 30), (40, 3)])
    x, add, hint = make("normal", elements(table)), make("normal", elements(table)), torch.zeros(2)
    wire, status = torch.zeros(nbytes(table), dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPS.topk_encode, (x, add, wire, table, status, 1.0, 1.0, hint), test_utils=tests)
    torch.library.opcheck(OPS.topk_encode, (x, None, wire, table, status, 1.0, 1.0, None), test_utils=tests)
    OPS.topk_encode(x, add, wire, table, status, 1.0, 1.0, hint)
    skip = torch.zeros(2, dtype=torch.uint8)
    torch.library.opcheck(OPS.topk_decode, (wire[None], table, skip, x, 1.0, False), test_utils=tests)
    torch.library.opcheck(OPS.topk_zero, (wire[None], table, x), test_utils=tests)
