"""Cast to 8 bits equals its naive reference and torch's own conversion, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc
from compcomm.ops.reference.float8 import E4M3, E5M2, Type, round_to

from . import float8
from .package import assert_equal, floats, run

TYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


@given(floats(700), st.booleans(), st.sampled_from([16, 64, 512]))
def test_float8(y: np.ndarray, e5m2: bool, block: int) -> None:
    section = float8.encode(y, e5m2, block)
    assert_equal(
        run(cc.Cast(TYPES[e5m2], block=block), y, cc.Rng()), section, float8.decode(section, len(y), e5m2, block)
    )


@pytest.mark.parametrize(("to", "form"), [(TYPES[0], E4M3), (TYPES[1], E5M2)])
def test_rounding_is_that_of_torch(to: torch.dtype, form: Type) -> None:
    """All numbers of the type, all midpoints between them, their neighbours in fp32, and numbers of every size."""
    known = torch.from_numpy(float8.numbers(to == torch.float8_e5m2)).float()
    middle = (known[1:] + known[:-1]) / 2
    points = torch.cat((known, middle))
    around = [torch.nextafter(points, torch.tensor(v)) for v in (0.0, 1e9)]
    g = torch.Generator().manual_seed(1)
    wild = torch.exp2(torch.rand(100_000, generator=g) * 40 - 30).clamp_max(form.top)
    t = torch.cat((points, *around, wild, torch.tensor([1e-40, 2.0**-126])))
    t = t[t <= form.top]
    q, code = round_to(t, form)
    due = t.to(to)
    assert torch.equal(code.to(torch.uint8), due.view(torch.uint8))
    assert torch.equal(q, due.to(torch.float32))


@pytest.mark.parametrize("to", TYPES)
def test_the_wire_is_in_the_encoding_of_the_type(to: torch.dtype) -> None:
    y = np.random.default_rng(2).standard_t(2, 700).astype(np.float32)
    t = run(cc.Cast(to), y, cc.Rng())
    steps, codes = t.section[:8].view(torch.float32), t.section[8:].view(to)
    assert torch.equal(t.value, codes.float() * steps.repeat_interleave(512)[:700])
    top = torch.finfo(to).max
    assert (codes[:512].float().abs().max(), codes[512:].float().abs().max()) == (top, top)
