"""Top-k, the decoder: kernels equal the reference, and what a peer sends is checked before it is used as an address."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compcomm.ops.reference import topk
from tests.ops.sparse_case import COMPILED, IMPLEMENTATIONS, elements, make, nbytes, same, table_of, topk_encode, using

OPS = torch.ops.compcomm


def messages(table: Tensor, count: int) -> Tensor:
    """Valid messages, each with other kept elements, padded to a stride."""
    wires = torch.zeros(count, nbytes(table) + 12, dtype=torch.uint8)
    for m in range(count):
        add = make("ties" if m % 2 else "normal", elements(table), m)
        wires[m, : nbytes(table)] = topk_encode("reference", torch.zeros(elements(table)), add, table)["wire"]
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
    [(0, 31), (3, 0x80), (4 + 2, 0), (4 + 58, 0xFF), (4 + 59, 0x80)],
    ids=["count too large", "count negative", "repeated", "outside", "far outside"],
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


def partial(table: Tensor, sent: list[int], seed: int) -> Tensor:
    """A message whose rows hold ``sent[row]`` of k elements, every other byte zero."""
    fewer = table.clone()
    fewer[:, 6] = torch.tensor(sent)
    add = make("normal", elements(table), seed)
    full = topk_encode("reference", torch.zeros(elements(table)), add, fewer)["wire"]
    wire = torch.zeros(nbytes(table), dtype=torch.uint8)
    for line, count in zip(table.tolist(), sent, strict=True):
        row = topk.Row(*line)
        begin, counts, padding = row.wire, 4 * topk.ceil_div(row.numel, topk.BLOCK), topk.pad4(2 * count)
        wire[begin : begin + counts + 2 * count] = full[begin : begin + counts + 2 * count]
        values = full[begin + counts + padding : begin + counts + padding + 4 * count]
        at = begin + counts + topk.pad4(2 * row.k)
        wire[at : at + 4 * count] = values
    return wire


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_section_may_hold_fewer_than_its_capacity(implementation: str) -> None:
    table = table_of([(1000, 30), (65540, 41), (200_000, 9)])
    sent = [[0, 41, 4], [30, 0, 0], [7, 8, 9], [0, 0, 0]]
    wires = torch.stack([partial(table, counts, seed) for seed, counts in enumerate(sent)])
    due = torch.zeros(elements(table))
    for seed, counts in enumerate(sent):
        y = make("normal", elements(table), seed)
        for line, count in zip(table.tolist(), counts, strict=True):
            row = topk.Row(*line)
            values = y[row.add : row.add + row.numel]
            kept = values.abs().topk(count).indices
            due[row.x + kept] += values[kept] * 0.5
    out = torch.zeros(elements(table))
    with using(implementation):
        OPS.topk_decode(wires, table, torch.zeros(2, dtype=torch.uint8), out, 0.5, True)
        assert same(out, due)
        OPS.topk_zero(wires[:1], table, due)
        assert int((out != due).sum()) == 45
        wires[0, int(table[0, 3])] = 31  # one above the capacity
        with pytest.raises(RuntimeError, match=r"message 0, table row 0: .*corrupt"):
            OPS.topk_decode(wires, table, torch.zeros(2, dtype=torch.uint8), out, 1.0, True)


def test_opcheck() -> None:
    table = table_of([(1000, 30), (40, 3)])
    wires, out, skip = messages(table, 2), torch.zeros(elements(table)), torch.zeros(2, dtype=torch.uint8)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPS.topk_decode, (wires, table, skip, out, 1.0, False), test_utils=tests)
    torch.library.opcheck(OPS.topk_zero, (wires[:1], table, out), test_utils=tests)
    with pytest.raises(ValueError, match=r"topk_zero: wires has 2 messages"):
        OPS.topk_zero(wires, table, out)
