"""The codebook ops: arguments that do not fit, and the wire to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compcomm.ops import native
from tests.ops.sparse_case import using

OPS = torch.ops.compcomm
BACKENDS = ("reference", *native.isas())


def _call(y: list[float], levels: torch.Tensor, bits: int, part: int, *tail: Any) -> torch.Tensor:
    x, wire = torch.tensor(y), torch.full((256,), 0xA5, dtype=torch.uint8)
    table = torch.tensor([[0, -1, len(y), 0, 0, 12345, 0, 0]])
    OPS.codebook_encode(x, None, wire, table, torch.zeros(2, dtype=torch.uint8), 1.0, 1.0, levels, bits, part, *tail)
    return wire


@pytest.mark.parametrize("backend", BACKENDS[::2])
@pytest.mark.parametrize(
    ("levels", "bits", "part", "reason"),
    [
        (1, 0, 0, "up to 8 bits"),
        (1, 9, 0, "up to 8 bits"),
        (1, 8, 1, "up to 8 bits"),
        (2, 2, 65536, "up to 8 bits"),
        (2, 1, 0, "levels has 2 elements on cpu; it must hold 1 "),
        (2, 2, 7, "levels has 2 elements on cpu; it must hold 6 "),
    ],
)
def test_arguments(backend: str, levels: int, bits: int, part: int, reason: str) -> None:
    table = torch.ones(levels).cumsum(0)
    with using(backend):
        with pytest.raises(ValueError, match=f"compcomm.codebook_encode: .*{reason}"):
            _call([1.0], table, bits, part, False, 16, 0)
        wires, skip, out = torch.zeros(1, 256, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8), torch.zeros(1)
        with pytest.raises(ValueError, match=f"compcomm.codebook_decode: .*{reason}"):
            rows = torch.tensor([[0, -1, 1, 0, 0, 0, 0, 0]])
            OPS.codebook_decode(wires, rows, skip, out, 1.0, False, table, bits, part, 16, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_rank_the_levels(backend: str) -> None:
    """From the most negative on; ties go to the smaller level, zero of either sign is positive."""
    unit = 5**-0.5
    with using(backend):
        wire = _call([-3.0, -1.0, 1.0, 3.0], torch.tensor([1.0, 3.0]) * unit, 2, 0, False, 16, 0)
        assert wire[:4].view(torch.float32).item() == pytest.approx(5**0.5)
        assert wire[4:8].tolist() == [0b11100100, 0, 0, 0]
        wire = _call([1.0, -1.0, 1.0, -1.0], torch.tensor([0.5, 1.5]), 2, 0, False, 16, 0)
        assert wire[4:8].tolist() == [0b01100110, 0, 0, 0]
        wire = _call([0.0, -0.0, 0.0, 2.0], torch.tensor([0.5, 1.5]), 2, 0, False, 16, 0)
        assert wire[4:8].tolist() == [0b11101010, 0, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_of_one_bit_wraps(backend: str) -> None:
    """h = 12 of 20 elements, all negative: twelve zero bits, padded to a word."""
    with using(backend):
        wire = _call([-2.0] * 20, torch.tensor([1.0]), 0, 39322, False, 32, 5)
        assert wire[:4].view(torch.float32).item() == 2.0
        assert wire[4:8].tolist() == [0, 0, 0, 0] and wire[8] == 0xA5
        wire = _call([2.0] * 20, torch.tensor([1.0]), 0, 39322, False, 32, 5)
        assert wire[4:8].tolist() == [0xFF, 0x0F, 0, 0]
