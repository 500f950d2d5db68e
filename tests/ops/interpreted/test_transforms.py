"""Rotations, sketches, statistics and Elias streams on GPU kernels answer to the reference bit for bit."""

from __future__ import annotations

import pytest
import torch

from tests.ops import test_sketch as sketch
from tests.ops.dense_case import case, gaps, same
from tests.ops.formats import Coded, elias
from tests.ops.interpreted.agreement import BACKENDS, check_encode, kernel_or_skip
from tests.ops.sparse_case import elements, make, table_of
from tests.ops.sparse_case import same as equal
from tests.ops.test_hadamard import NUMBERS, SKIP, forward, inverse
from tests.ops.test_tails import measure

ROWS = {16: (0, 1, 17, 4096, 4097), 512: (513, 5000), 2048: (4096 + 2047,), 4096: (4095, 4097), 8192: (8191, 12288)}
LARGE = {1 << 15: (70_001, 100), 1 << 16: (4097, (1 << 16) + 8195), 1 << 20: (5000, 4096 * 5 + 9)}


@pytest.mark.parametrize("block", [*ROWS, *LARGE])
@pytest.mark.parametrize("backend", BACKENDS)
def test_hadamard(backend: str, block: int) -> None:
    """Every kind of number; rows at odd places, and at multiples of 32 of their parameters; skipped and absent rows."""
    kernel_or_skip(backend, "hadamard_forward")
    sizes = (ROWS | LARGE)[block]
    for seed, kind in enumerate(("nonfinite",) if block > 4096 else ("normal", "denormal", "huge", "nonfinite")):
        c = case(NUMBERS, kind, sizes, seed)
        if seed % 2:
            c.table[:, 4] = 32 * torch.arange(len(sizes)) + (1 << 39)
        at, _, n, *_ = c.table[-1].tolist()
        c.x[at + n // 2] = -(2.0**66)  # of a block that is not rotated
        due, found = forward("reference", c, block), forward(backend, c, block)
        assert all(same(a, b) for a, b in zip(found, due, strict=True)), kind
        outside = gaps([(r[0], r[2]) for r in c.table.tolist()], c.x.numel())
        poisoned = torch.where(outside, torch.nan, c.add.nan_to_num())
        z = forward("reference", c._replace(add=c.add.nan_to_num().clamp(-9, 9)), block)[1]
        skip, table = SKIP.clone(), c.table.clone()
        skip[1], table[0, 0] = seed % 2, -1 if seed > 1 else table[0, 0]
        for accumulate in (False, True):
            expected = inverse("reference", z, table, poisoned, block, 0.3, accumulate, skip)
            assert same(inverse(backend, z, table, poisoned, block, 0.3, accumulate, skip), expected), (
                kind,
                accumulate,
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_hadamard_in_half_precision(backend: str) -> None:
    kernel_or_skip(backend, "hadamard_forward")
    c = case(NUMBERS, "normal", (4096 + 33, 600))
    x, add = c.x.bfloat16(), c.add.half()
    wide = c._replace(x=x.float(), add=add.float())
    due, found = forward("reference", wide, 64), forward(backend, c._replace(x=x, add=add), 64)
    assert same(found[0], due[0].bfloat16()) and same(found[1], due[1])
    back = inverse(backend, due[1], c.table, x, 64, 0.3)
    assert same(back, inverse("reference", due[1], c.table, x.float(), 64, 0.3).bfloat16())


@pytest.mark.parametrize("sizes", [(1, 16, 511, 512, 5000), (15, 17, 0, 513, 20_011)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_tails(backend: str, sizes: tuple[int, ...]) -> None:
    kernel_or_skip(backend, "tail_stats")
    table = table_of([(n, 0) for n in sizes])
    limits = torch.tensor([[0.3], [1.0]]).repeat(1, len(table)).contiguous()
    limits[0, 0], limits[1, 1], limits[1, 3] = 1e9, torch.nan, 0.0
    for kind in ("denormal", "huge", "nonfinite"):
        x, add = make("normal", elements(table), 1), make(kind, elements(table), 2)
        for gradient, flags in ((add, (False, True)), (None, (True, False))):
            start = add if gradient is None else x
            due = measure("reference", start, gradient, table, limits, *flags)
            found = measure(backend, start, gradient, table, limits, *flags)
            assert all(equal(a, b) for a, b in zip(due, found, strict=True)), (kind, flags)


SKETCHED = {"count": (0, 1, 15, 1100, 513, 63), "gauss": (0, 1, 17, 129)}


@pytest.mark.parametrize("name", list(SKETCHED))
@pytest.mark.parametrize("backend", BACKENDS)
def test_sketches(backend: str, name: str) -> None:
    """Encoded and decoded, with a row that is refused and one of a single sum."""
    kernel_or_skip(backend, f"{name}_encode")
    wires = []
    for seed, kind in enumerate(("normal", "huge", "denormal", "nonfinite")):
        c = sketch.sketched(name, kind, seed, SKETCHED[name])
        due, found = sketch.encode("reference", name, c), sketch.encode(backend, name, c)
        assert all(same(a, b) for a, b in zip(found, due, strict=True)), kind
        wires.append(due[1])
    c = sketch.sketched(name, sizes=SKETCHED[name])
    table, skip = c.table.clone(), torch.tensor([0, 1, 0, 0, 0], dtype=torch.uint8)
    table[3, 0] = -1
    for message, accumulate in ((wires[:1], False), (wires, True)):
        arguments = (torch.stack(message), table, c.add, 0.3, accumulate, skip)
        assert same(sketch.decode(backend, name, *arguments), sketch.decode("reference", name, *arguments))


@pytest.mark.parametrize("form", [*elias.FORMATS, elias.form(4, 7, block=1 << 20)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_elias_encode(backend: str, form: Coded) -> None:
    check_encode(backend, form, ("normal", "nonfinite", "one"))
