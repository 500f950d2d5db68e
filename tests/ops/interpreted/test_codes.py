"""Codebooks on GPU kernels answer to the reference bit for bit.

Programs are made small here, so that short rows have several tiles, and blocks several pieces: Triton's interpreter is
slow.
"""

from __future__ import annotations

import pytest

from tests.ops.formats import Coded
from tests.ops.formats.codebook import coded
from tests.ops.interpreted.agreement import check_decode, check_encode, full, of

# Elements to a program, about, and how many at a time; 0: as it is.
SMALL = [
    pytest.param(coded(4, block=48), 128, 32),
    pytest.param(coded(8, dot=True, block=48), 32, 0),
    pytest.param(coded(3, 20000, block=48), 128, 32),
    pytest.param(coded(0, 20000, block=48), 32, 16),
    full(coded(3, grid=True, block=48), 128, 0),
    full(coded(0, 1, block=16), 32, 0),
    full(coded(7, 65535, block=32), 64, 0),
]


def _programs(backend: str, tile: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "triton":
        module = pytest.importorskip("compcomm.ops.triton.codebook")
        for constant, value in (("ENCODE", tile), ("DECODE", tile), ("PIECE", piece)):
            if value:
                monkeypatch.setattr(module, constant, value)


@of("encode", SMALL)
def test_encode(backend: str, form: Coded, tile: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of no element, one, almost a block, a block, more and several tiles, at odd addresses."""
    _programs(backend, tile, piece, monkeypatch)
    block = form.block
    check_encode(backend, form, (0, 1, block - 1, block, 17, block + 1, 40, 4 * block + 5))


@of("decode", SMALL)
def test_decode(backend: str, form: Coded, tile: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _programs(backend, 2 * tile, piece, monkeypatch)
    check_decode(backend, form, (0, 1, form.block + 1, form.block, 17, 3 * form.block + 5))
