"""Blocks dealt out to shares, and selections brought back: a permutation with shares of nearly one size, equal on every
instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from compcomm.ops.reference.interleave import bounds, first_block, order
from compcomm.ops.reference.topk import Row, section
from tests.ops.sparse_case import KINDS, make, same, using

OPS = torch.ops.compcomm
BACKENDS = ("reference", *native.isas())
SIZES = (0, 1, 33, 512, 1000, 4099)


@pytest.mark.parametrize("ways", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("numel", [0, 1, 15, 16, 17, 160, 1000, 4099])
def test_shares_are_dealt_in_turn(numel: int, ways: int) -> None:
    places, edges = order(numel, 16, ways), bounds(numel, 16, ways)
    assert sorted(places.tolist()) == list(range(numel))
    assert edges[0] == 0 and edges[-1] == numel and len(edges) == ways + 1
    blocks = -(-numel // 16)
    for share in range(ways):
        own = places[edges[share] : edges[share + 1]] // 16
        assert len(own.unique()) in (blocks // ways, blocks // ways + 1)
        assert ((own - own[:1]) % ways == 0).all() and (own.diff() >= 0).all()
        assert not len(own) or int(own[0]) == first_block(numel, 16, ways, share)


def tables(ways: int) -> tuple[Tensor, int, int]:
    """Rows for ``deal`` with gaps; the second has no add, the third no x; elements of x and bytes of z."""
    rows, at, to = [], 3, 8
    for i, n in enumerate(SIZES):
        rows.append([-1 if i == 2 else at, -1 if i == 1 else at + 1, n, to, 0, 0, ways, i % 2])
        at, to = at + n + 2, to + 4 * n + 8
    return torch.tensor(rows), at + 2, to


def dealt(backend: str, ways: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    table, numel, nbytes = tables(ways)
    x, add = make("normal", numel), make(kind, numel, 1)
    z, status = torch.full((nbytes,), 0xA5, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    with using(backend):
        OPS.deal(x, add, z, table, status, 0.75, 1.3, 16)
    return x, z, status


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ways", [1, 3, 64])
def test_dealing_gives_the_same_bits_everywhere(kind: str, ways: int) -> None:
    due = dealt("reference", ways, kind)
    assert due[0].isfinite().all()
    table, numel, _ = tables(ways)
    for x_at, _, n, to, *_ in table.tolist():
        if x_at >= 0:
            z = due[1][to : to + 4 * n].clone().view(torch.float32)
            assert torch.equal(z, due[0][x_at : x_at + n][order(n, 16, ways)])
    for isa in native.isas():
        assert all(same(a, b) for a, b in zip(dealt(isa, ways, kind), due, strict=True)), isa


@pytest.mark.parametrize("ways", [1, 2, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_selections_come_back_to_their_places(backend: str, ways: int) -> None:
    """The k largest of each share of 1000 elements, and of 4099: added to a tensor in natural order."""
    lines, deals, byte, sources = [], [], 4, []
    starts = {1000: 5, 4099: 1010}
    for n in (1000, 4099):
        source = make("normal", n, n)
        sources.append(source)
        for share in range(ways):
            low, high = bounds(n, 16, ways)[share : share + 2]
            row = Row(0, -1, high - low, byte, 0, 0, 7, 0)
            lines.append((row, source[order(n, 16, ways)][low:high]))
            deals.append([n, first_block(n, 16, ways, share), ways])
            byte += section(row) + 4
    wire, status = torch.zeros(byte, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    due = torch.ones(5200)
    with using(backend):
        for row, part in lines:
            OPS.topk_encode(part.clone(), None, wire, torch.tensor([list(row)]), status, 1.0, 1.0, None)
        for (row, part), (n, first, _) in zip(lines, deals, strict=True):
            for j in part.abs().topk(7).indices.tolist():
                natural = (first + ways * (j // 16)) * 16 + j % 16
                assert sources[n == 4099][natural] == part[j]
                due[starts[n] + natural] += part[j] * 0.5
        table = torch.tensor([list(row) for row, _ in lines])
        table[:, 0] = torch.tensor([starts[n] for n, *_ in deals])
        out = torch.ones(5200)
        OPS.topk_undeal(wire[None], table, torch.tensor(deals), out, 0.5, 16)
        assert torch.equal(out, due)
        table[0, 0] = -1  # absent
        OPS.topk_undeal(wire[None], table, torch.tensor(deals), out, -0.5, 16)
        assert int(((out - 1).abs() > 1e-5).sum()) == 7


@pytest.mark.parametrize("backend", ("reference", *native.isas()[-1:]))
def test_what_does_not_fit_is_refused(backend: str) -> None:
    x, z, status = torch.zeros(100), torch.zeros(400, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    good = torch.tensor([[0, -1, 90, 0, 0, 0, 2, 0]])
    with using(backend):
        for column, value in ((0, 20), (0, 2**62), (0, -1), (2, -1), (3, 44), (6, 0), (6, 5000), (7, 3)):
            bad = good.clone()
            bad[0, column] = value
            with pytest.raises(ValueError, match="row 0"):
                OPS.deal(x, None, z, bad, status, 1.0, 1.0, 16)
        with pytest.raises(ValueError, match="block=8"):
            OPS.deal(x, None, z, good, status, 1.0, 1.0, 8)
        wire = torch.zeros(1, 100, dtype=torch.uint8)
        row = torch.tensor([[0, -1, 64, 0, 0, 0, 2, 0]])
        for deal in ([200, 0, 2], [100, 3, 1], [100, 0, 2], [-1, 0, 2], [100, -1, 1], [100, 0, 0]):
            with pytest.raises(ValueError, match="row 0"):
                OPS.topk_undeal(wire, row, torch.tensor([deal]), torch.zeros(110), 1.0, 16)
        with pytest.raises(ValueError, match=r"\[rows, 3\]"):
            OPS.topk_undeal(wire, row, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(110), 1.0, 16)
        with pytest.raises(ValueError, match="power of two"):
            OPS.topk_undeal(wire, row, torch.tensor([[100, 0, 1]]), torch.zeros(110), 1.0, 24)
        wire[0, 0] = 9  # more than k
        with pytest.raises(RuntimeError, match="corrupt"):
            OPS.topk_undeal(wire, row, torch.tensor([[100, 0, 1]]), torch.zeros(110), 1.0, 16)
