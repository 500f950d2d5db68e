"""Rotations, sketches, statistics and Elias streams on GPU kernels answer to the reference bit for bit."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from tests.ops import test_elias
from tests.ops import test_sketch as sketch
from tests.ops.dense_case import case, encode, gaps, same
from tests.ops.formats import Coded, elias
from tests.ops.interpreted.agreement import backends, check_decode, full, of
from tests.ops.sparse_case import elements, make, table_of, using
from tests.ops.sparse_case import same as equal
from tests.ops.test_hadamard import NUMBERS, SKIP, forward, inverse
from tests.ops.test_tails import measure

ROWS = {16: (0, 1, 17, 4096, 4097), 512: (513, 5000), 2048: (4096 + 2047,), 4096: (4095, 4097), 8192: (8191, 12288)}
LARGE = {1 << 15: (70_001, 100), 1 << 16: (4097, (1 << 16) + 4099), 1 << 20: (5000, 4096 * 5 + 9)}


@pytest.mark.parametrize("block", [*ROWS, 1 << 15, full(1 << 16), 1 << 20])
@pytest.mark.parametrize("backend", backends("hadamard_forward", "hadamard_inverse"))
def test_hadamard(backend: str, block: int) -> None:
    """Every kind of number; rows at odd places, and at multiples of 32 of their parameters; skipped and absent rows."""
    sizes = (ROWS | LARGE)[block]
    for seed, kind in enumerate(("normal", "denormal", "huge", "nonfinite") if block == 512 else ("nonfinite",)):
        c = case(NUMBERS, kind, sizes, seed)
        if seed % 2 or block in (1 << 15, 1 << 20):
            c.table[:, 4] = 32 * torch.arange(len(sizes)) + (1 << 39)
        at, _, n, *_ = c.table[-1].tolist()
        c.x[at + n // 2] = -(2.0**66)  # of a block that is not rotated
        due, found = forward("reference", c, block), forward(backend, c, block)
        assert all(same(a, b) for a, b in zip(found, due, strict=True)), kind
        outside = gaps([(r[0], r[2]) for r in c.table.tolist()], c.x.numel())
        poisoned = torch.where(outside, torch.nan, c.add.nan_to_num())
        z = forward("reference", c._replace(add=c.add.nan_to_num().clamp(-9, 9)), block)[1]
        skip, table = SKIP.clone(), c.table.clone()
        skip[0], skip[1], table[0, 0] = block == 1 << 16, seed % 2, -1 if seed > 1 else table[0, 0]
        for accumulate in (False, True):
            expected = inverse("reference", z, table, poisoned, block, 0.3, accumulate, skip)
            assert same(inverse(backend, z, table, poisoned, block, 0.3, accumulate, skip), expected), (
                kind,
                accumulate,
            )


@pytest.mark.parametrize("backend", backends("hadamard_forward", "hadamard_inverse"))
def test_hadamard_in_half_precision(backend: str) -> None:
    c = case(NUMBERS, "normal", (4096 + 33, 600))
    x, add = c.x.bfloat16(), c.add.half()
    wide = c._replace(x=x.float(), add=add.float())
    due, found = forward("reference", wide, 64), forward(backend, c._replace(x=x, add=add), 64)
    assert same(found[0], due[0].bfloat16()) and same(found[1], due[1])
    back = inverse(backend, due[1], c.table, x, 64, 0.3)
    assert same(back, inverse("reference", due[1], c.table, x.float(), 64, 0.3).bfloat16())


@pytest.mark.parametrize("sizes", [(1, 16, 511, 512, 1100), (15, 17, 0, 513, 16_900)], ids=str)
@pytest.mark.parametrize("backend", backends("tail_stats"))
def test_tails(backend: str, sizes: tuple[int, ...]) -> None:
    table = table_of([(n, 0) for n in sizes])
    limits = torch.tensor([[0.3], [1.0]]).repeat(1, len(table)).contiguous()
    limits[0, 0], limits[1, 1], limits[1, 3] = 1e9, torch.nan, 0.0
    with_add, alone = (True, (False, True)), (False, (True, False))
    turns = {"nonfinite": (with_add, alone), "denormal": (with_add,), "huge": (alone,)}
    for kind in ("nonfinite",) if max(sizes) > 16384 else turns:
        x, add = make("normal", elements(table), 1), make(kind, elements(table), 2)
        for given, flags in turns[kind]:
            gradient = add if given else None
            start = add if gradient is None else x
            due = measure("reference", start, gradient, table, limits, *flags)
            found = measure(backend, start, gradient, table, limits, *flags)
            assert all(equal(a, b) for a, b in zip(due, found, strict=True)), (kind, flags)


SKETCHED = {"count": (0, 1, 15, 1100, 513, 63), "gauss": (0, 1, 17, 129)}


@pytest.mark.parametrize("name", list(SKETCHED))
@pytest.mark.parametrize("backend", backends("count_encode", "gauss_encode"))
def test_sketches(backend: str, name: str) -> None:
    """Encoded and decoded, with a row that is refused and one of a single sum."""
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


@of("encode", [*(elias.FORMATS[i] for i in (3, 4, 6)), full(elias.form(4, 7, block=1 << 20))])
def test_elias_encode(backend: str, form: Coded) -> None:
    for seed, kind in enumerate(("nonfinite", "one")):
        c = case(form, kind, (0, 1, 16, 65), seed)
        due, found = (encode(name, form, c, 0.75, 1.3, seed != 1) for name in ("reference", backend))
        assert all(same(found[name], due[name]) for name in due), kind


@pytest.mark.parametrize("backend", backends("elias_encode"))
def test_elias_encode_of_whole_blocks(backend: str) -> None:
    """Blocks in each of the forms, one after the other, as random and rare numbers make them."""
    form = elias.form(4, 7, block=64)
    c = case(form, "normal", (64 * 21, 64 * 3 + 1))
    block = torch.arange(c.x.numel()) // 64
    x = torch.where((block % 5 == 1) & (torch.rand(c.x.numel()) < 0.95), 0.0, c.x)
    x = torch.where(block % 5 == 2, 0.0, torch.where(block % 5 == 3, x.sign() * 0.01, x))
    x[:: 64 * 5] = 1.0
    c = c._replace(x=x, add=x)
    due, found = (encode(name, form, c, add=False) for name in ("reference", backend))
    assert all(same(found[name], due[name]) for name in due)


@of("decode", [elias.FORMATS[i] for i in (3, 4)])
def test_elias_decode(backend: str, form: Coded) -> None:
    check_decode(backend, form)


@pytest.mark.parametrize("backend", backends("elias_decode"))
def test_elias_streams_that_cannot_be(backend: str) -> None:
    """Whatever the bits: the reference's error, or its numbers; and nothing is written where there was an error."""
    wires, g = torch.stack([test_elias.message(seed) for seed in range(3)]), torch.Generator().manual_seed(1)
    errors = 0
    for _ in range(8):
        noisy = wires.clone()
        for at, value in zip(*(torch.randint(0, n, (3,), generator=g) for n in (test_elias.NBYTES, 256)), strict=True):
            noisy[1, at] = value
        due, found = test_elias.decode("reference", noisy), test_elias.decode(backend, noisy)
        errors += bool(due[1])
        assert due[1] == found[1] and same(due[0], found[0])
    assert errors > 0
    word, table = test_elias.word, torch.tensor([[0, -1, 64, 0, 0, 0, 0, 0]])
    for form, bits, fine in (
        (2, word(64) + "1" + word(1) + word(1), True),
        (2, word(65), True),
        (2, word(66), False),
        (2, word(1) + "0" + word(8) + word(64), False),
        (2, word(1 << 40), False),
        (2, "1" * 200, False),
        (1, word(8) + "1" + word(1) * 63, True),
        (1, word(9) + "1" + word(1) * 63, False),
        (1, word(1) * 8 + word(4) + "0" + word(1) * 16, False),
        (0, "1111" * 64, False),
        (3, "0" * 64, False),
    ):
        out, skip = torch.full((64,), 5.0), torch.zeros(1, dtype=torch.uint8)
        with using(backend), nullcontext() if fine else pytest.raises(RuntimeError, match="message 0, table row 0"):
            torch.ops.compcomm.elias_decode(
                test_elias.sections(bits, form), table, skip, out, 1.0, False, test_elias.BITS, test_elias.LEVELS, 64
            )
        assert bool((out == 5.0).all()) is not fine, (form, bits)
