"""Rand-k: the permutation is one, its masks are fair, and the kernels answer to the reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from compcomm.ops.reference.randk import randk_indices
from tests.ops.sparse_case import COMPILED, IMPLEMENTATIONS, OPS, agree, call, elements, make, same, table_of, using


def encoding(table: Tensor, x: Tensor, add: Tensor | None, gain: list[float], step: int = 3, decay: float = 1.0):
    """Arguments of the encoder, buffers poisoned."""
    wire = torch.full((int(table[-1, 3] + 4 * table[-1, 6]) + 12,), 0xA5, dtype=torch.uint8)
    return (x, add, wire, table, torch.tensor([0, 0, 4], dtype=torch.uint8), decay, 0.5, torch.tensor(gain), step)


def test_the_permutation_is_a_bijection() -> None:
    for numel in (*range(1, 71, 3), 256, 257, 1000, 65537):
        everything = torch.arange(numel)
        masks = [randk_indices(key, numel, numel, 0, 5) for key in (0, -1, 2**62 + 12345)]
        assert all(torch.equal(mask.sort().values, everything) for mask in masks)
        assert torch.equal(randk_indices(0, numel, numel // 2, 0, 5), masks[0][: numel // 2])
        assert numel < 20 or not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("implementation", COMPILED)
def test_native_indices_equal_the_reference(implementation: str) -> None:
    with using(implementation):
        for numel in (1, 2, 3, 5, 17, 64, 65, 257, 1000, 65537, 2**20 + 1, 2**32, 2**32 + 1, 2**35, 2**40):
            for key, offset, step in ((0, 0, 0), (-5, 2**33 + 7, 2**40 + 1)):
                k = min(numel, 700)
                truth = randk_indices(key, numel, k, offset, step)
                assert torch.equal(OPS.randk_indices(key, numel, k, offset, step), truth), numel
                assert bool((truth < numel).all()) and bool((truth >= 0).all())
    with pytest.raises(ValueError, match=r"randk_indices\(numel=3, k=4\)"):
        OPS.randk_indices(7, 3, 4, 0, 0)


def masks(numel: int, k: int, draws: int, over: str) -> Tensor:
    """``[draws, numel]`` of 0 and 1, over keys, steps or offsets."""
    result, place = torch.zeros(draws, numel), {"key": 1, "offset": 0, "step": 0}
    drawn = torch.empty(draws, k, dtype=torch.int64)
    for i in range(draws):
        place[over] = i * 0x9E3779B97F4A7C15 % 2**63 if over == "key" else i
        drawn[i] = OPS.randk_indices(numel=numel, k=k, **place)
    return result.scatter_(1, drawn, 1.0)


@pytest.mark.turns(3)
@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="so many draws of the reference take too long")
@pytest.mark.parametrize(
    ("over", "numel", "k"),
    [("key", 5, 2), ("key", 8, 4), ("key", 64, 6), ("step", 8, 4), ("step", 33, 1), ("offset", 20, 5)],
)
def test_every_element_and_every_pair_is_as_likely_as_any_other(over: str, numel: int, k: int) -> None:
    draws = 20_000
    drawn = masks(numel, k, draws, over)
    assert bool((drawn.sum(1) == k).all())
    p = k / numel
    z = (drawn.mean(0) - p) / math.sqrt(p * (1 - p) / draws)
    assert z.abs().max() < 4.5
    assert z.square().sum() * (numel - 1) / numel < numel - 1 + 6 * math.sqrt(2 * (numel - 1))  # chi-squared
    if k > 1:
        pair = p * (k - 1) / (numel - 1)
        z = (drawn.T @ drawn / draws - pair) / math.sqrt(pair * (1 - pair) / draws)
        assert z.fill_diagonal_(0).abs().max() < 5
    after = (drawn[:-1] * drawn[1:]).mean(0)  # the next draw of the sequence knows nothing of this one
    assert ((after - p * p) / math.sqrt(p * p * (1 - p * p) / draws)).abs().max() < 4.5


@pytest.mark.parametrize("kind", ["normal", "nonfinite", "huge", "zero", "denormal"])
def test_kernels_equal_the_reference(kind: str) -> None:
    for n in (1, 2, 15, 17, 255, 256, 257, 1000, 65537):
        for k in sorted({1, -(-n // 100), n} if n < 10_000 else {2000}):
            table = table_of([(n, k), (0, 0), (min(n, 70), min(n, 7))])
            x, add, gain = make("normal", elements(table), 1), make(kind, elements(table), 2), [n / k, 1.0, 1e30]
            agree(native.isas(), "randk_encode", *encoding(table, add, None, gain, decay=0.9))
            _, _, wire, *_ = agree(native.isas(), "randk_encode", *encoding(table, x, add, gain, decay=0.9))
            wires = torch.stack((wire, call("reference", "randk_encode", *encoding(table, x, None, gain))[2], wire))
            for accumulate, absent, skip in ((False, 0, [0, 0]), (True, -1, [0, 1]), (False, -1, [1, 0])):
                chosen, skipped = table.clone(), torch.tensor(skip, dtype=torch.uint8)
                if absent >= 0:
                    chosen[absent, 0] = -1
                agree(native.isas(), "randk_decode", wires, chosen, skipped, x, 0.3, accumulate, 3)


def test_what_is_sent_and_what_stays() -> None:
    table = table_of([(1000, 100), (50, 50)])
    x, add = make("normal", elements(table), 1), make("normal", elements(table), 2)
    left, _, wire, _, status, *_ = call("reference", "randk_encode", *encoding(table, x, add, [10.0, 1.0]))
    first, second = (slice(int(row[0]), int(row[0] + row[2])) for row in table)
    y = x[first] + 0.5 * add[int(table[0, 1]) :][:1000]
    mask = randk_indices(int(table[0, 5]), 1000, 100, 0, 3)
    sent = wire[int(table[0, 3]) :][:400].view(torch.float32)
    assert torch.equal(sent, 10 * y[mask])
    assert torch.equal(left[first], y.index_add(0, mask, -sent)) and bool((left[second] == 0).all())
    outside = torch.ones(len(x), dtype=torch.bool)
    outside[first] = outside[second] = False
    assert same(left[outside], x[outside])
    assert wire[412:424].tolist() == [0xA5] * 12 and wire[:12].tolist() == [0xA5] * 12
    assert status.tolist() == [0, 1, 5]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ranks_share_the_mask_so_payloads_may_be_summed(implementation: str) -> None:
    table, skip = table_of([(3000, 300)]), torch.zeros(1, dtype=torch.uint8)
    given = [encoding(table, make("normal", 3007, rank), None, [10.0]) for rank in range(2)]
    wires = torch.stack([call(implementation, "randk_encode", *args)[2] for args in given])
    one = wires[:1].clone()
    one[0, 12:1212] = wires[:, 12:1212].clone().view(torch.float32).sum(0).view(torch.uint8)
    apart, together, later = (
        call(implementation, "randk_decode", messages, table, skip, torch.zeros(3007), 1.0, False, step)[3]
        for messages, step in ((wires, 3), (one, 3), (one, 4))
    )
    assert same(apart, together) and int((apart != 0).sum()) == 300
    assert not torch.equal(apart, later), "another step, another mask"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_product_that_overflows_stays_at_home(implementation: str) -> None:
    table = torch.tensor([[0, -1, 2, 0, 0, 0, 2, 0]])
    x, wire, status = torch.tensor([1e30, 1.0]), torch.zeros(8, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    with using(implementation):
        OPS.randk_encode(x, None, wire, table, status, 1.0, 1.0, torch.tensor([1e20]), 0)
        with pytest.raises(ValueError, match=r"randk_encode: gain has 2 elements"):
            OPS.randk_encode(x, None, wire, table, status, 1.0, 1.0, torch.ones(2), 0)
    assert x[0] == torch.tensor(1e30) and status.tolist() == [1, 1]
    assert sorted(wire.view(torch.float32).tolist()) == [0.0, torch.tensor(1e20).item()]
