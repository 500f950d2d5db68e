"""Ternary, two means and codebooks on GPU kernels answer to the reference bit for bit.

Programs are made small here, so that short rows have several tiles, and blocks several pieces.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops.dense_case import case, encode, same
from tests.ops.formats import Coded, codebook, ternary, two_means
from tests.ops.interpreted.agreement import BACKENDS, SCALES, check_decode, check_encode, kernel_or_skip

KINDS = ("normal", "nonfinite")
TERNARY = [ternary._form(clip, block) for clip, block in ((0.0, 16), (2.1, 48), (2.1, 512))]
TWO_MEANS = [two_means._form(block) for block in (16, 48, 128)]
CODEBOOKS = [
    codebook._coded(4, block=128),
    codebook._coded(8, dot=True, block=48),
    codebook._coded(1, block=16),
    codebook._coded(3, grid=True, block=48),
    codebook._coded(3, 20000, block=48),
    codebook._coded(0, 20000, block=64),
    codebook._coded(0, 1, block=16),
    codebook._coded(7, 65535, block=128),
]
FORMATS = [*TERNARY, *TWO_MEANS, *CODEBOOKS]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the backends, with tiles of 96 to 640 elements and pieces of 32 or 64 columns."""
    if request.param == "triton":
        for name in ("codebook", "ternary", "two_means"):
            module = pytest.importorskip(f"compcomm.ops.triton.{name}")
            monkeypatch.setattr(module, "ENCODE", 128 if name == "ternary" else 64)
            monkeypatch.setattr(module, "DECODE", 128)
    return request.param


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_encode(backend: str, form: Coded) -> None:
    check_encode(backend, form, KINDS)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_decode(backend: str, form: Coded) -> None:
    check_decode(backend, form)


def _check(backend: str, form: Coded, kind: str, sizes: tuple[int, ...], **changes: Any) -> None:
    """One call, after some columns of the table are changed."""
    kernel_or_skip(backend, f"{form.name}_encode")
    c = case(form, kind, sizes, seed=5)
    for column, values in changes.items():
        c.table[:, int(column[-1])] = torch.tensor(values)
    arguments = (form, c, *SCALES.get(kind, (0.75, 1.3)))
    expected, found = encode("reference", *arguments), encode(backend, *arguments)
    assert all(same(found[name], tensor) for name, tensor in expected.items()), (form, kind)


@pytest.mark.parametrize("form", [TERNARY[2], TWO_MEANS[1], CODEBOOKS[0], CODEBOOKS[4]], ids=str)
@pytest.mark.parametrize("kind", ["denormal", "huge", "zero", "negative zero", "one", "ties"])
def test_all_kinds_of_numbers(backend: str, form: Coded, kind: str) -> None:
    _check(backend, form, kind, (17, 200))


@pytest.mark.parametrize("clip", [0.0, 1.5])
@pytest.mark.parametrize("sizes", [(1, 640, 700), (1300,)])
def test_ternary_dithers_of_aligned_rows(backend: str, clip: float, sizes: tuple[int, ...]) -> None:
    """Where rows begin at superblocks of their parameter, one Philox call serves eight elements."""
    form = ternary._form(clip, 128)
    _check(backend, form, "normal", sizes, column_4=[128 * (5 + i) for i in range(len(sizes))])


@pytest.mark.parametrize("form", [ternary._form(0.0, 2048), two_means._form(4112), codebook._coded(2, block=4096)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_long_blocks(backend: str, form: Coded) -> None:
    """With programs as they are: a block alone, in pieces of 4096; ten thousand ternary elements to a program."""
    _check(backend, form, "normal", (9000,), column_4=[0])


@pytest.mark.parametrize("form", [TERNARY[1], TWO_MEANS[1], CODEBOOKS[4]], ids=str)
def test_half_precision(backend: str, form: Coded) -> None:
    """Residuals in bfloat16 are read as they are and rounded once."""
    kernel_or_skip(backend, f"{form.name}_encode")
    c = case(form, "normal", (17, 200))
    c = c._replace(x=c.x.bfloat16(), add=c.add.half())
    expected, found = encode("reference", form, c, 0.75, 1.3), encode(backend, form, c, 0.75, 1.3)
    assert all(same(found[name], tensor) for name, tensor in expected.items())
