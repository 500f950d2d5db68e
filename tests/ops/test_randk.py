"""Rand-k: the permutation is one, its masks are fair, and the kernels answer to the reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from compcomm.ops.reference.randk import randk_indices
from tests.ops.sparse_case import COMPILED, IMPLEMENTATIONS, elements, make, same, table_of, using

OPS = torch.ops.compcomm


def encode(
    implementation: str, x: Tensor, add: Tensor | None, table: Tensor, gain: list[float], decay: float = 1.0
) -> dict[str, Tensor]:
    """All outputs of one call on copies of its inputs, buffers poisoned."""
    length = int(table[-1, 3] + 4 * table[-1, 6]) + 12
    result = {
        "x": x.clone(),
        "wire": torch.full((length,), 0xA5, dtype=torch.uint8),
        "status": torch.tensor([0, 0, 4], dtype=torch.uint8),
    }
    with using(implementation):
        OPS.randk_encode(result["x"], add, result["wire"], table, result["status"], decay, 0.5, torch.tensor(gain), 3)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("numel", [*range(1, 71), 1000, 65536, 65537])
def test_the_permutation_is_a_bijection(numel: int) -> None:
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


def masks(numel: int, k: int, draws: int, over: str) -> Tensor:
    """``[draws, numel]`` of 0 and 1, over keys, steps or offsets."""
    result = torch.zeros(draws, numel)
    for i in range(draws):
        place = {"key": 1, "offset": 0, "step": 0, over: i * 0x9E3779B97F4A7C15 % 2**63 if over == "key" else i}
        result[i, OPS.randk_indices(numel=numel, k=k, **place)] = 1
    return result


@pytest.mark.turns(2)
@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="20,000 draws of the reference take too long")
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


@pytest.mark.turns(2, first=1)
@pytest.mark.parametrize("kind", ["normal", "nonfinite", "huge", "zero", "denormal"])
def test_kernels_equal_the_reference(kind: str) -> None:
    for n in (1, 2, 15, 17, 255, 256, 257, 1000, 65537, 200_001):
        for k in sorted({1, -(-n // 100), n} if n < 100_000 else {2000}):
            table = table_of([(n, k), (0, 0), (min(n, 70), min(n, 7))])
            x, add, gain = make("normal", elements(table), 1), make(kind, elements(table), 2), [n / k, 1.0, 1e30]
            for other in (add, None):
                truth = encode("reference", x if other is not None else add, other, table, gain, decay=0.9)
                for implementation in native.isas():
                    result = encode(implementation, x if other is not None else add, other, table, gain, decay=0.9)
                    assert all(same(truth[name], result[name]) for name in truth), (implementation, n, k)
            wires = torch.stack([truth["wire"]] * 3)
            wires[1] = encode("reference", x, None, table, gain)["wire"]
            for accumulate, absent, skip in ((False, 0, [0, 0]), (True, -1, [0, 1]), (False, -1, [1, 0])):
                chosen, out = table.clone(), {}
                if absent >= 0:
                    chosen[absent, 0] = -1
                skipped = torch.tensor(skip, dtype=torch.uint8)
                for name in ("reference", *native.isas()):
                    out[name] = x.clone()
                    with using(name):
                        OPS.randk_decode(wires, chosen, skipped, out[name], 0.3, accumulate, 3)
                assert all(same(out["reference"], result) for result in out.values())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_sent_and_what_stays(implementation: str) -> None:
    table = table_of([(1000, 100), (50, 50)])
    x, add = make("normal", elements(table), 1), make("normal", elements(table), 2)
    result = encode(implementation, x, add, table, [10.0, 1.0])
    first, second = (slice(int(row[0]), int(row[0] + row[2])) for row in table)
    y = x[first] + 0.5 * add[int(table[0, 1]) :][:1000]
    mask = randk_indices(int(table[0, 5]), 1000, 100, 0, 3)
    wire = result["wire"][int(table[0, 3]) :][:400].view(torch.float32)
    assert torch.equal(wire, 10 * y[mask])
    left = y.clone()
    left[mask] -= wire
    assert torch.equal(result["x"][first], left) and bool((result["x"][second] == 0).all())
    outside = torch.ones(len(x), dtype=torch.bool)
    outside[first] = outside[second] = False
    assert same(result["x"][outside], x[outside])
    assert result["wire"][412:424].tolist() == [0xA5] * 12 and result["wire"][:12].tolist() == [0xA5] * 12
    assert result["status"].tolist() == [0, 1, 5]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ranks_share_the_mask_so_payloads_may_be_summed(implementation: str) -> None:
    table = table_of([(3000, 300)])
    wires = torch.stack(
        [encode(implementation, make("normal", 3007, rank), None, table, [10.0])["wire"] for rank in range(2)]
    )
    summed = (wires[:, 12:1212].clone().view(torch.float32).sum(0)).view(torch.uint8)
    together, apart, skip = torch.zeros(3007), torch.zeros(3007), torch.zeros(1, dtype=torch.uint8)
    with using(implementation):
        OPS.randk_decode(wires, table, skip, apart, 1.0, False, 3)
        one = wires[:1].clone()
        one[0, 12:1212] = summed
        OPS.randk_decode(one, table, skip, together, 1.0, False, 3)
        assert same(apart, together) and int((apart != 0).sum()) == 300
        OPS.randk_decode(one, table, skip, together, 1.0, False, 4)
        assert not torch.equal(apart, together)  # another step, another mask


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_product_that_overflows_stays_at_home(implementation: str) -> None:
    table = torch.tensor([[0, -1, 2, 0, 0, 0, 2, 0]])
    x, wire, status = torch.tensor([1e30, 1.0]), torch.zeros(8, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    with using(implementation):
        OPS.randk_encode(x, None, wire, table, status, 1.0, 1.0, torch.tensor([1e20]), 0)
    assert x[0] == torch.tensor(1e30) and status.tolist() == [1, 1]
    assert sorted(wire.view(torch.float32).tolist()) == [0.0, torch.tensor(1e20).item()]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("column", "value", "words"),
    [(6, 11, "k"), (6, -1, "k"), (0, 1, "outside x"), (3, 4, "outside the wire"), (7, 1, "index"), (2, 2**41, "numel")],
)
def test_a_table_that_does_not_fit_is_explained(implementation: str, column: int, value: int, words: str) -> None:
    table = torch.tensor([[0, 0, 10, 0, 0, 0, 3, 0]])
    table[0, column] = value
    tensors = torch.zeros(10), torch.zeros(10), torch.zeros(12, dtype=torch.uint8)
    status, gain = torch.zeros(2, dtype=torch.uint8), torch.ones(1)
    with using(implementation), pytest.raises(ValueError, match=rf"randk_encode: table row 0.*{words}"):
        OPS.randk_encode(*tensors, table, status, 1.0, 1.0, gain, 0)
    with using(implementation), pytest.raises(ValueError, match=r"randk_encode: gain has 2 elements"):
        OPS.randk_encode(*tensors, table, status, 1.0, 1.0, torch.ones(2), 0)


def test_opcheck() -> None:
    table = table_of([(1000, 30), (40, 3)])
    x, add = make("normal", elements(table)), make("normal", elements(table))
    wire, status = torch.zeros(260, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    tests = ("test_schema", "test_faketensor")
    encode_args = (x, add, wire, table, status, 1.0, 1.0, torch.ones(2), 1)
    torch.library.opcheck(OPS.randk_encode, encode_args, test_utils=tests)
    decode_args = (wire[None], table, torch.zeros(2, dtype=torch.uint8), x, 1.0, False, 1)
    torch.library.opcheck(OPS.randk_decode, decode_args, test_utils=tests)
    assert torch.equal(OPS.randk_indices(7, 100, 10, 0, 3), randk_indices(7, 100, 10, 0, 3))
    with pytest.raises(ValueError, match=r"randk_indices\(numel=3, k=4\)"):
        OPS.randk_indices(7, 3, 4, 0, 0)
