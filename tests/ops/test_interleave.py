"""Blocks dealt out to shares and back: a permutation with shares of nearly one size, equal on every instruction set."""

from __future__ import annotations

import pytest
import torch

from compcomm.ops import native
from compcomm.ops.reference.interleave import bounds, order
from tests.ops.sparse_case import using

OP = torch.ops.compcomm.interleave
BACKENDS = ("reference", *native.isas())


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ways", [1, 2, 3, 7, 64])
def test_there_and_back(backend: str, ways: int) -> None:
    sizes = (0, 1, 33, 512, 1000, 4099)
    rows, at, to = [], 3, 5
    for n in sizes:
        rows.append([at, to, n, ways])
        at, to = at + n + 2, to + n + 1
    table, source = torch.tensor(rows), torch.randn(at, generator=torch.Generator().manual_seed(0))
    with using(backend):
        dealt = torch.full((to,), torch.nan)
        OP(source, table, dealt, 16, 1.0, False, False)
        back = torch.full((at,), torch.nan)
        OP(dealt, table, back, 16, 1.0, False, True)
        added = torch.ones(at)
        OP(dealt, table, added, 16, 0.5, True, True)
        absent = table.clone()
        absent[2, 0] = -1
        some = torch.zeros(at)
        OP(dealt, absent, some, 16, 2.0, False, True)
    covered = torch.zeros(at, dtype=torch.bool)
    for (start, place, n, _), kept in zip(rows, (1, 1, 0, 1, 1, 1), strict=True):
        part = source[start : start + n]
        covered[start : start + n] = True
        assert torch.equal(dealt[place : place + n], part[order(n, 16, ways)])
        assert torch.equal(back[start : start + n], part)
        assert torch.equal(added[start : start + n], 1 + part * 0.5)
        assert torch.equal(some[start : start + n], part * 2 * kept)
    assert back[~covered].isnan().all() and int(dealt.isnan().sum()) == to - sum(sizes)


@pytest.mark.parametrize("backend", ("reference", *native.isas()[-1:]))
def test_rows_that_do_not_fit_are_refused(backend: str) -> None:
    source, target = torch.zeros(100), torch.zeros(90)
    with using(backend):
        for row in ([0, 0, 95, 2], [10, 0, 91, 2], [0, 0, -1, 2], [0, 0, 10, 0], [2**62, 0, 10, 1]):
            with pytest.raises(ValueError, match="row 0"):
                OP(source, torch.tensor([row]), target, 16, 1.0, False, False)
        with pytest.raises(ValueError, match="grain=0"):
            OP(source, torch.tensor([[0, 0, 10, 2]]), target, 0, 1.0, False, False)
        with pytest.raises(ValueError, match=r"\[rows, 4\]"):
            OP(source, torch.tensor([[0, 0, 10]]), target, 16, 1.0, False, False)
