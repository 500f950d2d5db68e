"""The rotation: orthogonal, undone by its inverse, the same bits on every instruction set, and only in its rows."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from compcomm.ops.reference.hadamard import cut, signs
from tests.ops.dense_case import GAP, Case, Format, case, gaps, same
from tests.ops.sparse_case import KINDS, rows_of_kinds, using

OPS = torch.ops.compcomm
BACKENDS = ("reference", *native.isas())
NUMBERS = Format("dense")  # rows of as many numbers, four bytes each
SIZES = (0, 1, 7, 15, 16, 17, 33, 127, 128, 513, 2049, 4099)
BLOCKS = (16, 32, 64, 128, 256, 512, 4096)
SKIP = torch.zeros(5, dtype=torch.uint8)


def forward(
    backend: str, c: Case, block: int, decay: float = 0.75, add_scale: float = 1.3, step: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """x, z and status; z is poisoned, and begins at an odd address."""
    x, z = c.x.clone(), torch.full((c.nbytes + 1,), 0xA5, dtype=torch.uint8)[1:]
    status = torch.tensor([4, 0, 0, 0, 2, 0], dtype=torch.uint8)
    with using(backend):
        OPS.hadamard_forward(x, c.add, z, c.table, status, decay, add_scale, block, step)
    return x, z, status


def inverse(
    backend: str, z: Tensor, table: Tensor, out: Tensor, block: int, scale: float = 1.0,
    accumulate: bool = False, skip: Tensor = SKIP, step: int = 3,
) -> Tensor:  # fmt: skip
    out = out.clone()
    with using(backend):
        OPS.hadamard_inverse(z.unsqueeze(0), table, skip, out, scale, accumulate, block, step)
    return out


@pytest.mark.parametrize("block", BLOCKS)
def test_every_instruction_set_equals_the_reference(block: int) -> None:
    """Every row has another kind of numbers."""
    for seed in range(2):
        c = case(NUMBERS, sizes=SIZES)
        x, add = rows_of_kinds(c.table, KINDS[3 * seed :] + KINDS[: 3 * seed], seed)
        c = c._replace(x=x, add=add)
        due = forward("reference", c, block)
        outside = gaps([(r[0], r[2]) for r in c.table.tolist()], c.x.numel())
        poisoned = torch.where(outside, torch.nan, c.add.nan_to_num())
        skip, absent = SKIP.clone(), c.table.clone()
        skip[1], absent[4, 0] = 1, -1
        back = [inverse("reference", due[1], absent, poisoned, block, 0.3, a, skip) for a in (False, True)]
        for isa in native.isas():
            assert all(same(a, b) for a, b in zip(forward(isa, c, block), due, strict=True)), (seed, isa)
            for accumulate in (False, True):
                found = inverse(isa, due[1], absent, poisoned, block, 0.3, accumulate, skip)
                assert same(found, back[accumulate]), (seed, isa, accumulate)


@pytest.mark.parametrize("block", [8192, 1 << 15, 1 << 20])
def test_blocks_larger_than_the_cache(block: int) -> None:
    c = case(NUMBERS, sizes=((1 << 20) + 4097,) if block == 1 << 20 else (70_001,))
    due = forward("reference", c, block)
    back = inverse("reference", due[1], c.table, c.add, block)
    for isa in native.isas():
        assert all(same(a, b) for a, b in zip(forward(isa, c, block), due, strict=True))
        assert same(inverse(isa, due[1], c.table, c.add, block), back)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [16, 512, 4096])
def test_it_is_orthogonal_and_undone(backend: str, block: int) -> None:
    """|R x| = |x| and R^T R x = x on every row, whatever tail it has; nothing beside the rows is written."""
    c = case(NUMBERS, sizes=SIZES)
    x, z, status = forward(backend, c, block)
    outside = gaps([(r[0], r[2]) for r in c.table.tolist()], c.x.numel())
    assert same(x[outside], c.x[outside])
    beside = gaps([(r[3], 4 * r[2]) for r in c.table.tolist()], c.nbytes)
    assert (z[beside] == 0xA5).all() and status[0] == 4
    back = inverse(backend, z, c.table, torch.full_like(c.x, torch.nan), block)
    assert back[outside].isnan().all()
    for at, add, n, wire, *_ in c.table.tolist():
        y = c.x[at : at + n] * 0.75
        y = y + c.add[add : add + n] * 1.3 if add >= 0 else y
        assert same(x[at : at + n], y)
        rotated = z[wire : wire + 4 * n].clone().view(torch.float32)
        assert float(rotated.double().norm()) == pytest.approx(float(y.double().norm()), rel=1e-6, abs=1e-30)
        assert float((back[at : at + n] - y).norm()) <= 1e-6 * float(y.norm())
        assert n < 16 or not torch.allclose(rotated, y), "nothing was rotated"


def test_it_is_the_matrix_it_says() -> None:
    """R = H diag(signs) / sqrt n, H[i, j] = (-1)^(number of common one bits of i and j), on each part of a row."""
    n, block, key, offset = 16 + 8 + 4 + 1, 16, -77, 1000
    sign = signs(key, offset, n, 9).double()
    due = torch.zeros(n, n, dtype=torch.float64)
    for at, count, size in cut(n, block):
        for first in range(at, at + count * size, size):
            for i in range(size):
                for j in range(size):
                    due[first + i, first + j] = (-1) ** bin(i & j).count("1") / sqrt(size) * sign[first + j]
    assert torch.allclose(due @ due.T, torch.eye(n, dtype=torch.float64), atol=1e-12)
    for backend in BACKENDS:
        columns: list[Tensor] = []
        for j in range(n):
            x, z = torch.zeros(n), torch.zeros(4 * n, dtype=torch.uint8)
            x[j] = 1.0
            table, status = torch.tensor([[0, -1, n, 0, offset, key, 0, 0]]), torch.zeros(2, dtype=torch.uint8)
            with using(backend):
                OPS.hadamard_forward(x, None, z, table, status, 1.0, 1.0, block, 9)
            columns.append(z.view(torch.float32).double())
        assert torch.allclose(torch.stack(columns, 1), due, atol=1e-7)


def test_signs_are_fair_and_belong_to_the_parameter() -> None:
    n = 100_000
    sign = signs(5, 0, n, 0)
    assert abs(float(sign.sum())) < 4 * sqrt(n) and abs(float((sign[1:] * sign[:-1]).sum())) < 4 * sqrt(n)
    assert torch.equal(signs(5, 333, 1000, 0), sign[333:1333]), "a piece has the signs of its place"
    for other in (signs(6, 0, n, 0), signs(5, 0, n, 1)):
        assert abs(float((sign * other).sum())) < 4 * sqrt(n)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_may_be_cut_at_any_block(backend: str) -> None:
    n, block, first = 5 * 64 + 9, 64, 2**39 - 117  # the counter's word wraps inside
    whole, halves = case(NUMBERS, sizes=(n,)), case(NUMBERS, sizes=(128, n - 128))
    for c in (whole, halves):
        c.table[:, 5], c.table[:, 4], c.table[:, 1] = 99, first, -1
    halves.table[1, 4] = first + 128
    halves.x[GAP : GAP + 128] = whole.x[GAP : GAP + 128]
    halves.x[2 * GAP + 128 : 2 * GAP + n] = whole.x[GAP + 128 : GAP + n]
    a, b = forward(backend, whole, block)[1], forward(backend, halves, block)[1]
    (at,), (one, two) = whole.table[:, 3].tolist(), halves.table[:, 3].tolist()
    assert same(a[at : at + 512], b[one : one + 512])
    assert same(a[at + 512 : at + 4 * n], b[two : two + 4 * n - 512])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_could_overflow_is_not_rotated(backend: str) -> None:
    """A block with 2^64 in it gives zeros, is flagged and stays in x; the next block is rotated."""
    for value, refused in ((2.0**64, True), (2.0**64 * (1 - 2.0**-24), False), (-3e38, True)):
        x, z = torch.ones(64), torch.full((256,), 0xA5, dtype=torch.uint8)
        x[3] = value
        table, status = torch.tensor([[0, -1, 64, 0, 0, 1, 0, 0]]), torch.zeros(2, dtype=torch.uint8)
        with using(backend):
            OPS.hadamard_forward(x, None, z, table, status, 1.0, 1.0, 32, 0)
        numbers = z.view(torch.float32)
        assert status.tolist() == [int(refused), 1] and x[3] == value
        assert bool(numbers[:32].any()) is not refused and numbers.isfinite().all()
        assert float(numbers[32:].norm()) == pytest.approx(sqrt(32), rel=1e-6)


@pytest.mark.parametrize("backend", ["reference", *native.isas()[-1:]])
def test_wrong_arguments(backend: str) -> None:
    c = case(NUMBERS, sizes=(40, 600))
    z, status = torch.zeros(c.nbytes, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)

    def run(**changes: Any) -> None:
        given = {"x": c.x, "z": z, "table": c.table, "status": status, "block": 64, "wires": z.unsqueeze(0)} | changes
        with using(backend):
            OPS.hadamard_forward(
                given["x"], c.add, given["z"], given["table"], given["status"], 1.0, 1.0, given["block"], 0
            )
            OPS.hadamard_inverse(given["wires"], given["table"], SKIP, given["x"], 1.0, False, given["block"], 0)

    run()
    for block in (0, 8, 48, -64, 1 << 21):
        with pytest.raises(ValueError, match=f"hadamard_forward: block={block} must be a power of two from 16"):
            run(block=block)
    with pytest.raises(ValueError, match="2 vectors; sum them first"):
        run(wires=torch.stack((z, z)))
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        run(x=c.x.double())
    for column, value, reason in ((0, 10**6, "outside x"), (3, 10**7, "wire"), (2, -1, "numel"), (7, 5, "index")):
        table = c.table.clone()
        table[1, column] = value
        with pytest.raises(ValueError, match=f"hadamard_forward: table row 1 .*{reason}"):
            run(table=table)
        with using(backend), pytest.raises(ValueError, match="hadamard_inverse: table row 1"):
            OPS.hadamard_inverse(z.unsqueeze(0), table, SKIP, c.x, 1.0, True, 64, 0)
