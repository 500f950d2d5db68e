"""Blocks permuted into ways, and selections brought back: a permutation, equal on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from compcomm.ops.reference.interleave import order, ways_of
from compcomm.ops.reference.topk import Row, section
from tests.ops.sparse_case import KINDS, make, same, using

OPS = torch.ops.compcomm
BACKENDS = ("reference", *native.isas())
SIZES = (0, 1, 33, 512, 1000, 4099)


@pytest.mark.parametrize("ways", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("numel", [0, 1, 15, 16, 17, 160, 1000, 4099])
def test_hands_are_dealt_in_turn(numel: int, ways: int) -> None:
    places = order(numel, 16, ways)
    assert sorted(places.tolist()) == list(range(numel))
    assert numel == 0 or int(places[-1]) == numel - 1, "the last block, which may be short, stays last"
    blocks = (places // 16).unique_consecutive().tolist()
    each = max(0, len(blocks) - 1) // ways
    for way in range(ways):
        own = blocks[way * each : (way + 1) * each]
        assert own == list(range(own[0], ways * each, ways)) if own else not each
    assert blocks[ways * each :] == list(range(ways * each, len(blocks)))


@pytest.mark.parametrize("numel", [4099, 100_000, 10**6])
def test_every_stretch_has_a_part_of_every_region(numel: int) -> None:
    """Of each of 8 stretches of the permuted order, every eighth of the parameter has nearly an eighth."""
    places = order(numel, 16, ways_of(numel, 16))
    for stretch in places.chunk(8):
        share = torch.bincount(stretch * 8 // numel, minlength=8) / len(stretch)
        assert float(share.max()) < 0.26 and float(share.min()) > 0.06


def tables(ways: int) -> tuple[Tensor, int, int]:
    """Rows for ``permute_blocks`` with gaps; the second has no add, the third no x; elements of x and bytes of z."""
    rows, at, to = [], 3, 8
    for i, n in enumerate(SIZES):
        rows.append([-1 if i == 2 else at, -1 if i == 1 else at + 1, n, to, 0, 0, ways, i % 2])
        at, to = at + n + 2, to + 4 * n + 8
    return torch.tensor(rows), at + 2, to


def permuted(backend: str, ways: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    table, numel, nbytes = tables(ways)
    x, add = make("normal", numel), make(kind, numel, 1)
    z, status = torch.full((nbytes,), 0xA5, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    with using(backend):
        OPS.permute_blocks(x, add, z, table, status, 0.75, 1.3, 16)
    return x, z, status


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ways", [1, 3, 64])
def test_dealing_gives_the_same_bits_everywhere(kind: str, ways: int) -> None:
    due = permuted("reference", ways, kind)
    assert due[0].isfinite().all()
    table, *_ = tables(ways)
    for x_at, _, n, to, *_ in table.tolist():
        if x_at >= 0:
            z = due[1][to : to + 4 * n].clone().view(torch.float32)
            assert torch.equal(z, due[0][x_at : x_at + n][order(n, 16, ways)])
    for isa in native.isas():
        assert all(same(a, b) for a, b in zip(permuted(isa, ways, kind), due, strict=True)), isa


@pytest.mark.parametrize("ways", [1, 2, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_selections_come_back_to_their_places(backend: str, ways: int) -> None:
    """The largest of each third of 1000 permuted elements, and of 4099: added to a tensor in natural order."""
    lines, pieces, byte, sources = [], [], 4, []
    starts = {1000: 5, 4099: 1010}
    for n in (1000, 4099):
        source = make("normal", n, n)
        sources.append(source)
        for share in range(3):
            low, high = n * share // 3, n * (share + 1) // 3
            row = Row(0, -1, high - low, byte, 0, 0, 7, 0)
            lines.append((row, source[order(n, 16, ways)][low:high]))
            pieces.append([n, low, ways])
            byte += section(row) + 4
    wire, status = torch.zeros(byte, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    due = torch.ones(5200)
    with using(backend):
        for row, part in lines:
            OPS.topk_encode(part.clone(), None, wire, torch.tensor([list(row)]), status, 1.0, 1.0, None)
        for (_, part), (n, low, _) in zip(lines, pieces, strict=True):
            for j in part.abs().topk(7).indices.tolist():
                natural = int(order(n, 16, ways)[low + j])
                assert sources[n == 4099][natural] == part[j]
                due[starts[n] + natural] += part[j] * 0.5
        table = torch.tensor([list(row) for row, _ in lines])
        table[:, 0] = torch.tensor([starts[n] for n, *_ in pieces])
        out = torch.ones(5200)
        OPS.topk_scatter(wire[None], table, torch.tensor(pieces), out, 0.5, 16)
        assert torch.equal(out, due)
        table[0, 0] = -1  # absent
        OPS.topk_scatter(wire[None], table, torch.tensor(pieces), out, -0.5, 16)
        assert int(((out - 1).abs() > 1e-5).sum()) == 7


@pytest.mark.parametrize("backend", ("reference", *native.isas()[-1:]))
def test_what_does_not_fit_is_refused(backend: str) -> None:
    x, z, status = torch.zeros(100), torch.zeros(400, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    good = torch.tensor([[0, -1, 90, 0, 0, 0, 2, 0]])
    with using(backend):
        for column, value in ((0, 20), (0, 2**62), (0, -1), (2, -1), (3, 44), (6, 0), (6, -3), (7, 3)):
            bad = good.clone()
            bad[0, column] = value
            with pytest.raises(ValueError, match="row 0"):
                OPS.permute_blocks(x, None, z, bad, status, 1.0, 1.0, 16)
        with pytest.raises(ValueError, match="block=8"):
            OPS.permute_blocks(x, None, z, good, status, 1.0, 1.0, 8)
        wire = torch.zeros(1, 100, dtype=torch.uint8)
        row = torch.tensor([[0, -1, 64, 0, 0, 0, 2, 0]])
        for piece in ([200, 0, 2], [100, 40, 1], [60, 0, 2], [-1, 0, 2], [100, -1, 1], [100, 0, 0]):
            with pytest.raises(ValueError, match="row 0"):
                OPS.topk_scatter(wire, row, torch.tensor([piece]), torch.zeros(110), 1.0, 16)
        with pytest.raises(ValueError, match=r"\[rows, 3\]"):
            OPS.topk_scatter(wire, row, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(110), 1.0, 16)
        with pytest.raises(ValueError, match="power of two"):
            OPS.topk_scatter(wire, row, torch.tensor([[100, 0, 1]]), torch.zeros(110), 1.0, 24)
        wire[0, 0] = 9  # more than k
        with pytest.raises(RuntimeError, match="corrupt"):
            OPS.topk_scatter(wire, row, torch.tensor([[100, 0, 1]]), torch.zeros(110), 1.0, 16)
