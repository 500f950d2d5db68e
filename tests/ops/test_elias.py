"""Elias streams come from peers: whatever their bits, kernels and reference agree, and no byte elsewhere changes."""

from __future__ import annotations

from time import perf_counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compcomm.ops import native
from compcomm.ops.reference.elias import code, decode_section, section, stream_at
from compcomm.ops.reference.omega import omega, stream
from tests.ops.dense_case import same
from tests.ops.sparse_case import IMPLEMENTATIONS, using
from tests.patience import patience

OPS = torch.ops.compcomm
BITS, LEVELS, BLOCK = 4, 7, 64
NUMELS = (200, 70)  # blocks of 64, 64, 64, 8 and of 64, 6
TABLE = torch.tensor([[0, -1, 200, 0, 0, 1, 0, 0], [200, -1, 70, section(200, BITS, BLOCK), 0, 2, 0, 1]])
NBYTES = sum(section(n, BITS, BLOCK) for n in NUMELS)
NOISE = st.tuples(st.integers(0, NBYTES - 1), st.integers(0, 255))


def message(seed: int = 0) -> Tensor:
    """Four sparse, dense, fixed and zero blocks, and some more."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(270, generator=g)
    x[:64] *= torch.rand(64, generator=g) < 0.1
    x[64:128] = torch.where(x[64:128] < 0, -0.29, 0.29)
    x[70], x[80:90] = 1.0, 0.0
    x[192:200] = 0.0
    wire, status = torch.zeros(NBYTES, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    OPS.elias_encode(x, None, wire, TABLE, status, 1.0, 1.0, torch.ones(2), BITS, LEVELS, False, False, BLOCK, 0, 0)
    return wire


def decode(name: str, wires: Tensor, skip: Tensor | None = None, accumulate: bool = True) -> tuple[Tensor, str]:
    """``out`` with its surroundings, and the error."""
    around = torch.full((270 + 32,), 7.0)
    skip = torch.zeros(2, dtype=torch.uint8) if skip is None else skip
    with using(name):
        try:
            OPS.elias_decode(wires, TABLE, skip, around[16:-16], 0.5, accumulate, BITS, LEVELS, BLOCK)
        except RuntimeError as e:
            assert "please report" not in str(e)
            return around, str(e)
    return around, ""


def test_the_message_has_every_form() -> None:
    forms = message()[4 + 16 : stream_at(200, BLOCK)].tolist()
    assert sorted(forms[0] >> 2 * b & 3 for b in range(4)) == [0, 1, 2, 3]


@settings(max_examples=150)
@given(st.lists(NOISE, min_size=1, max_size=6), st.integers(0, 2))
def test_any_bytes_are_safe(noise: list[tuple[int, int]], where: int) -> None:
    wires = torch.stack([message(seed) for seed in range(3)])
    for at, value in noise:
        wires[where, at] = value
    expected, error = decode("reference", wires)
    assert not error or f"message {where}, table row " in error
    for name in native.isas():
        found, again = decode(name, wires.clone())
        assert again == error
        if error:
            bad = int(error.partition("table row ")[2].partition(":")[0])
            start = 16 + int(TABLE[bad, 0])
            assert (found[start:] == 7.0).all() and (found[:16] == 7.0).all()
        else:
            assert same(found, expected)


@settings(max_examples=100)
@given(st.binary(min_size=0, max_size=NBYTES), st.sampled_from([None, 0, 4]), st.booleans())
def test_random_streams_are_safe(noise: bytes, length: int | None, fill: bool) -> None:
    """Steps and streams of arbitrary bytes behind a length that may be true."""
    wire = torch.full((NBYTES,), 255 if fill else 0, dtype=torch.uint8)
    wire[: len(noise)] = torch.tensor(list(noise), dtype=torch.uint8)
    for row, numel in enumerate(NUMELS):
        at = int(TABLE[row, 3])
        used = section(numel, BITS, BLOCK) - (length or 0)
        wire[at : at + 4] = torch.tensor([used], dtype=torch.int32).view(torch.uint8)
    results = [decode(name, wire.unsqueeze(0)) for name in ("reference", *native.isas())]
    assert len({error for _, error in results}) == 1
    if not results[0][1]:
        assert all(same(found, results[0][0]) for found, _ in results[1:])


def sections(blocks: str, form: int, numel: int = 64) -> Tensor:
    """A message whose first row is one block in this form; ``blocks``: its bits."""
    raw = torch.tensor([int(b) for b in blocks], dtype=torch.int64)
    bits = stream(raw, torch.ones_like(raw))
    used = -(-(9 + len(bits)) // 4) * 4
    head = torch.tensor([used], dtype=torch.int32).view(torch.uint8), torch.ones(1).view(torch.uint8)
    body = torch.cat((*head, torch.tensor([form], dtype=torch.uint8), bits))
    return torch.nn.functional.pad(body, (0, section(numel, BITS, BLOCK) - len(body))).unsqueeze(0)


def word(k: int) -> str:
    bits, length = omega(torch.tensor([k]))
    return f"{int(bits):0{int(length)}b}"[::-1]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("form", "bits", "fine"),
    [
        (2, word(1) + "0" + word(7) + word(64), True),
        (2, word(1) + "0" + word(8) + word(64), False),  # a level above s
        (2, word(64) + "1" + word(1) + word(1), True),
        (2, word(65), True),  # nothing but the end: longer than need be, but true
        (2, word(66), False),  # a gap beyond the block
        (2, word(64) + "1" + word(1) + word(2), False),
        (2, word(1 << 40), False),
        (2, "1" * 200, False),  # a number without end
        (1, word(8) + "1" + word(1) * 63, True),
        (1, word(9) + "1" + word(1) * 63, False),
        (1, word(200) + "1" + word(1) * 63, False),
        (1, word(1) * 31, True),  # what the padding holds is as good as the rest
        (1, word(1) * 8 + word(4) + "0" + word(1) * 16, False),  # the stream ends before the block
        (0, "0111" * 64, True),
        (0, "1111" * 64, False),  # code 15, of 0..14
        (0, "0000" * 62, False),
        (3, "", True),
        (3, "0" * 64, False),  # bits left over
    ],
)  # fmt: skip
def test_words_at_the_limits(name: str, form: int, bits: str, fine: bool) -> None:
    wires, table = sections(bits, form), torch.tensor([[0, -1, 64, 0, 0, 0, 0, 0]])
    out, skip = torch.full((64,), 5.0), torch.zeros(1, dtype=torch.uint8)
    call = (wires, table, skip, out, 1.0, False, BITS, LEVELS, BLOCK)
    if bits == word(1) * 31:
        wires[0, :4] = torch.tensor([20, 0, 0, 0], dtype=torch.uint8)  # 88 bits where 31 were meant, and 64 are due
    with using(name):
        if fine:
            OPS.elias_decode(*call)
            assert out.isfinite().all() and not (out == 5.0).any()
        else:
            with pytest.raises(RuntimeError, match=r"elias_decode: message 0, table row 0: .*corrupt"):
                OPS.elias_decode(*call)
            assert (out == 5.0).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_corrupt_message_is_named_and_its_row_left_alone(name: str) -> None:
    wires = torch.stack([message(seed) for seed in range(3)])
    at = int(TABLE[1, 3])
    wires[2, at : at + 4] = torch.tensor([255, 255, 255, 255], dtype=torch.uint8)
    out, error = decode(name, wires)
    assert "elias_decode: message 2, table row 1: the Elias section is corrupt" in error
    assert (out[16 + 200 :] == 7.0).all()
    out, error = decode(name, wires, skip=torch.tensor([0, 1], dtype=torch.uint8), accumulate=False)
    assert not error and not out[216:-16].any() and out[16:216].any()  # what nobody decodes is not looked at


@pytest.mark.skipif(not native.available(), reason="the reference alone takes its time")
def test_a_damaged_message_costs_no_more_time_than_a_true_one() -> None:
    """What is wrong is said by whoever found it, not by a reader in Python that goes through all of it again."""
    numel = 3_000_000
    table = torch.tensor([[0, -1, numel, 0, 0, 1, 0, 0]])
    wire = torch.zeros(section(numel, BITS, BLOCK), dtype=torch.uint8)
    out, status, skip = torch.randn(numel), torch.zeros(2, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    OPS.elias_encode(out, None, wire, table, status, 1.0, 1.0, torch.ones(1), BITS, LEVELS, True, False, BLOCK, 0, 0)
    used = int(wire[:4].view(torch.int32))
    wire[used - 100 : used] = 255
    since = perf_counter()
    with pytest.raises(RuntimeError, match="message 0, table row 0: the Elias section is corrupt"):
        OPS.elias_decode(wire.unsqueeze(0), table, skip, out, 1.0, False, BITS, LEVELS, BLOCK)
    assert perf_counter() - since < patience(1)


def lossless(q: Tensor, numel: int, bits: int, levels: int) -> list[int]:
    """Blocks ``q`` (steps of one) through the reference's coder and all decoders; the forms that were chosen."""
    block = q.shape[1]
    forms, coded = code(q, numel, bits, levels)
    used = -(-(stream_at(numel, block) + len(coded)) // 4) * 4
    head = torch.tensor([used], dtype=torch.int32).view(torch.uint8), torch.ones(len(q)).view(torch.uint8)
    body = torch.cat((*head, forms, coded))
    wire = torch.nn.functional.pad(body, (0, section(numel, bits, block) - len(body)))
    found = decode_section(wire, numel, bits, levels, block)
    assert found is not None and torch.equal(found.long(), q.view(-1)[:numel])
    for name in native.isas():
        out, skip = torch.zeros(numel), torch.zeros(1, dtype=torch.uint8)
        with using(name):
            rows = torch.tensor([[0, -1, numel, *[0] * 5]])
            OPS.elias_decode(wire.unsqueeze(0), rows, skip, out, 1.0, False, bits, levels, block)
        assert torch.equal(out.long(), q.view(-1)[:numel])
    return [int(forms[b // 4]) >> b % 4 * 2 & 3 for b in range(len(q))]


@pytest.mark.parametrize("levels", [1, 2, 7, 22, 127])
def test_all_levels_survive_in_every_form(levels: int) -> None:
    """Blocks of every level, at densities from one in a hundred to all."""
    bits = {1: 2, 2: 3, 7: 4, 22: 6, 127: 8}[levels]
    g = torch.Generator().manual_seed(levels)
    for density in (0.01, 0.1, 0.5, 1.0):
        for block, numel in ((16, 40), (512, 1500), (2048, 2048)):
            q = torch.randint(-levels, levels + 1, (-(-numel // block), block), generator=g)
            q *= torch.rand(q.shape, generator=g) < density
            q.view(-1)[numel:] = 0
            lossless(q, numel, bits, levels)


def test_dense_blocks_of_short_and_long_words() -> None:
    """Words that come by three from the table stand next to words too long for it, at every place of a block."""
    g = torch.Generator().manual_seed(0)
    for seed in range(20):
        q = torch.where(torch.rand(40, 48, generator=g) < 0.5, 2, -2)
        long = torch.rand(40, 48, generator=g) < (0.0 if seed == 0 else 0.02 * (seed % 4))
        q = torch.where(long, torch.randint(-127, 128, q.shape, generator=g), q)
        q[1::2, 0] = 127  # after a block that ends with twelve short words
        assert 1 in lossless(q, 40 * 48, 8, 127)
