"""Codebooks on GPU kernels answer to the reference bit for bit.

Programs are made small here, so that short rows have several tiles, and blocks several pieces: Triton's interpreter is
slow.
"""

from __future__ import annotations

import pytest
import torch

from tests.ops.dense_case import GAP, case, decode, encode, gaps, same
from tests.ops.formats import Coded, codebook
from tests.ops.interpreted.agreement import SCALES, full, of

SMALL = [
    pytest.param(codebook._coded(4, block=48), 128, 32),
    pytest.param(codebook._coded(8, dot=True, block=48), 32, 0),
    pytest.param(codebook._coded(3, grid=True, block=48), 128, 0),
    pytest.param(codebook._coded(3, 20000, block=48), 128, 32),
    pytest.param(codebook._coded(0, 20000, block=48), 32, 0),
    full(codebook._coded(0, 1, block=16), 32, 0),
    full(codebook._coded(7, 65535, block=32), 64, 0),
]


def _programs(backend: str, tile: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """About ``tile`` elements to a program and ``piece`` at a time, where that is not 0."""
    if backend == "triton":
        module = pytest.importorskip("compcomm.ops.triton.codebook")
        for constant, value in (("ENCODE", tile), ("DECODE", tile), ("PIECE", piece)):
            if value:
                monkeypatch.setattr(module, constant, value)


def _check(
    backend: str, form: Coded, kind: str, sizes: tuple[int, ...], add: bool = True, aligned: bool = False
) -> None:
    """All that one call writes; ``aligned``: rows begin at superblocks of their parameter."""
    c = case(form, kind, sizes, seed=5)
    if aligned:
        c.table[:, 4] = 128 * torch.arange(5, 5 + len(sizes))
    arguments = (form, c, *SCALES.get(kind, (0.75, 1.3)), add)
    expected, found = encode("reference", *arguments), encode(backend, *arguments)
    for name, tensor in expected.items():
        assert same(found[name], tensor), (form, kind, name)


@of("encode", SMALL)
def test_encode(backend: str, form: Coded, tile: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of no element, one, almost a block, a block, more and several tiles, at odd addresses."""
    _programs(backend, tile, piece, monkeypatch)
    block = form.block
    several = 4 * block + 5
    _check(backend, form, "nonfinite", (0, 1, block - 1, block, block + 1, several))
    _check(backend, form, "normal", (17, block + 2), add=False)


@of("decode", SMALL)
def test_decode(backend: str, form: Coded, tile: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message and several, at odd addresses, added and written, rows skipped and absent; into fp32 and bf16."""
    _programs(backend, 2 * tile, piece, monkeypatch)
    block = form.block
    c = case(form, "normal", (0, 1, block + 1, block, 17, 3 * block + 5))
    wires = torch.full((3, c.nbytes + 5), 0x5A, dtype=torch.uint8)[:, 3:-2]
    for rank in range(3):
        wires[rank] = encode("reference", form, c, 0.5 + rank, rank=rank)["wire"]
    c.table[3, 0] = -1
    skip = torch.tensor([0, 0, 0, 0, 1], dtype=torch.uint8)
    outside = gaps([(r[0], r[2]) for r in c.table.tolist() if r[0] >= 0], c.x.numel())
    poisoned = torch.where(outside, torch.nan, c.add)
    assert c.add.numel() > GAP
    for messages, accumulate in ((1, True), (3, False)):
        arguments = (wires[:messages], poisoned, 0.3, accumulate, skip)
        expected = decode("reference", form, c, *arguments)
        assert same(decode(backend, form, c, *arguments), expected), (form, messages, accumulate)
    narrow = decode(backend, form, c, wires, poisoned.bfloat16(), 0.3, False, skip)
    assert torch.equal(narrow[~outside], expected[~outside].bfloat16()), form


@of("encode", [codebook._coded(2, 9000, block=48)])
@pytest.mark.parametrize("kind", ["denormal", "huge", "negative zero", "one"])
def test_all_kinds_of_numbers(backend: str, form: Coded, kind: str) -> None:
    _check(backend, form, kind, (100,))


LONG = [codebook._coded(4, block=4112)]


@of("encode", LONG)
def test_long_blocks(backend: str, form: Coded) -> None:
    """With programs as they are: a block alone, in pieces."""
    _check(backend, form, "normal", (4200,), aligned=True)


@of("encode", [codebook._coded(3, 9000, block=48)])
def test_half_precision(backend: str, form: Coded) -> None:
    """Residuals in bfloat16 and gradients in float16 are read as they are; residuals are rounded once."""
    c = case(form, "normal", (100,))
    c = c._replace(x=c.x.bfloat16(), add=c.add.half())
    expected, found = encode("reference", form, c, 0.75, 1.3), encode(backend, form, c, 0.75, 1.3)
    assert all(same(found[name], tensor) for name, tensor in expected.items())
