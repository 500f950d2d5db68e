"""Every compressor equals its naive reference, to the bit: bytes on the wire, decoded numbers, what is left behind."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import compcomm as cc

from . import cast, qsgd, randk, sign, topk
from .package import assert_equal, floats, philox_key, rngs, run

offsets = st.sampled_from([0, 16, 128, 512, 4096 + 64])
densities = st.sampled_from([0.01, 0.1, 0.5, 1.0])


@given(floats(), densities)
def test_topk(y: np.ndarray, ratio: float) -> None:
    c = cc.TopK(ratio=ratio)
    k = c.kept(len(y))
    section = topk.encode(y, k)
    assert_equal(run(c, y, cc.Rng()), section, topk.decode(section, len(y), k))


def test_topk_over_several_blocks_of_indices() -> None:
    y = np.random.default_rng(3).standard_normal(150_000).astype(np.float32)
    y[[0, 65_535, 65_536, 131_071, 131_072, 149_999]] = 100.0  # the corners of the blocks, and ties
    c = cc.TopK(k=1001)
    section = topk.encode(y, 1001)
    assert_equal(run(c, y, cc.Rng()), section, topk.decode(section, len(y), 1001))


@given(floats(), densities, st.booleans(), rngs, offsets)
def test_randk(y: np.ndarray, ratio: float, unbiased: bool, rng: cc.Rng, offset: int) -> None:
    c = cc.RandK(ratio=ratio, unbiased=unbiased)
    k = c.kept(len(y))
    place = (philox_key(rng), offset, rng.step)
    section = randk.encode(y, k, c.gain(len(y)), *place)
    t = run(c, y, rng, offset)
    assert_equal(t, section, randk.decode(section, len(y), k, *place))


@pytest.mark.parametrize("numel", [1, 2, 3, 4, 5, 64, 65, 1000])
def test_randk_places_are_a_permutation(numel: int) -> None:
    due = randk.indices(0x0123456789ABCDEF, numel, numel, 0, 7)
    found = torch.ops.compcomm.randk_indices(0x0123456789ABCDEF, numel, numel, 0, 7)
    assert found.tolist() == due
    assert sorted(due) == list(range(numel))


@settings(max_examples=60)
@given(
    floats(700), st.sampled_from([(None, 2), (1, None), (None, 3), (5, None), (None, 4), (22, None), (None, 8)]),
    st.sampled_from([2.0, inf]), st.sampled_from(["stochastic", "nearest"]), st.sampled_from([16, 64, 512]),
    rngs, offsets,
)  # fmt: skip
def test_qsgd(
    y: np.ndarray, size: tuple[int | None, int | None], norm: float, rounding: str, block: int, rng: cc.Rng, offset: int
) -> None:
    levels, bits = size
    c = cc.QSGD(bits=bits, levels=levels, norm=norm, rounding=rounding, block=block)
    s, width = (
        {2: (1, 2), 3: (3, 3), 4: (7, 4), 8: (127, 8)}[bits] if bits else {1: (1, 2), 5: (5, 4), 22: (22, 6)}[levels]
    )
    y = np.clip(y, -1e17, 1e17)  # sums of squares stay finite
    draw = (philox_key(rng), rng.step, rng.rank, offset) if rounding == "stochastic" else None
    section = qsgd.encode(y, s, width, norm == 2, block, 1.0, draw)
    assert_equal(run(c, y, rng, offset), section, qsgd.decode(section, len(y), s, width, block))


@given(floats(700), rngs)
def test_contractive_writes_shrunken_steps(y: np.ndarray, rng: cc.Rng) -> None:
    inner = cc.QSGD(bits=4)
    omega = inner.omega(len(y))
    assert omega is not None
    draw = (philox_key(rng), rng.step, rng.rank, 0)
    section = qsgd.encode(y, 7, 4, False, 512, 1.0 / (1.0 + omega), draw)
    assert_equal(run(cc.Contractive(inner), y, rng), section, qsgd.decode(section, len(y), 7, 4, 512))


@given(floats(), st.sampled_from(["l1", "l2", "dot"]), st.sampled_from([16, 64, 512]))
def test_sign(y: np.ndarray, scale: str, block: int) -> None:
    y = np.clip(y, -1e17, 1e17)
    section = sign.encode(y, scale, block)
    assert_equal(run(cc.SignScale(scale, block), y, cc.Rng()), section, sign.decode(section, len(y), block))


@given(floats(), st.booleans())
def test_cast(y: np.ndarray, half: bool) -> None:
    y = np.clip(y, -60_000, 60_000) if half else y
    section = cast.encode(y, half)
    c = cc.Cast(torch.float16 if half else torch.bfloat16)
    assert_equal(run(c, y, cc.Rng()), section, cast.decode(section, len(y), half))
