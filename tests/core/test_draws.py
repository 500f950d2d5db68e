"""Draws of ``Rng``: what the page of Philox says, piece by piece as in the whole, and as random as they look."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc
from compcomm.core.random import key, on_a_device, on_the_host
from tests.reference.philox import philox

CPU = torch.device("cpu")
WHOLE = cc.Segment("layer.weight", (100, 30), 0, 3000)
RNG = cc.Rng(seed=7, step=70_000, rank=3)


@given(
    st.integers(0, 2**33), st.integers(0, 40), st.booleans(), st.integers(0, 2**30 - 1), st.integers(-(2**62), 2**62)
)
def test_bits_are_words_of_philox(offset: int, count: int, shared: bool, stream: int, seed: int) -> None:
    rng = RNG._replace(seed=seed)
    piece = cc.Segment("w", (1, offset + count), 0, count, offset)
    found = rng.bits(piece, CPU, shared=shared, stream=stream)
    for i, drawn in enumerate(found.tolist(), offset):
        counter = (i // 4 % 2**32, rng.step, 0 if shared else rng.rank, 2**31 + 2 * stream + shared)
        assert drawn == philox(counter, key(seed, "w") % 2**64)[i % 4]


@given(st.integers(0, 2**33), st.integers(0, 9), st.integers(-(2**63), 2**63 - 1))
def test_devices_draw_what_the_host_draws(first: int, count: int, key: int) -> None:
    rest = (2**40 + 7, -3, 2**31 + 5)
    a, b = (draw(first, first + count, rest, key, CPU) for draw in (on_the_host, on_a_device))
    assert a.dtype == b.dtype == torch.int64 and torch.equal(a, b)


def test_a_piece_draws_what_its_elements_have_in_the_whole() -> None:
    whole = RNG.uniform(WHOLE, CPU)
    for low, high in ((0, 1), (1, 2), (3, 1000), (997, 3000), (5, 5)):
        assert torch.equal(RNG.uniform(WHOLE.piece(low, high), CPU), whole[low:high])
    assert torch.equal(RNG.uniform(WHOLE, CPU, count=7), whole[:7])


def test_other_coordinates_give_other_numbers_and_shared_ones_leave_the_rank_out() -> None:
    mine = RNG.bits(WHOLE, CPU)
    others = [
        RNG._replace(seed=8).bits(WHOLE, CPU),
        RNG._replace(step=1).bits(WHOLE, CPU),
        RNG._replace(rank=0).bits(WHOLE, CPU),
        RNG.bits(WHOLE._replace(name="v"), CPU),
        RNG.bits(WHOLE, CPU, stream=1),
        RNG.bits(WHOLE, CPU, shared=True),
    ]
    assert all((mine == other).sum() <= 1 for other in others)
    assert torch.equal(others[-1], RNG._replace(rank=0).bits(WHOLE, CPU, shared=True))


def test_uniform_numbers_are_uniform_and_never_at_an_end() -> None:
    u = RNG.uniform(cc.Segment("w", (1 << 10, 1 << 10), 0, 1 << 20), CPU)
    assert u.dtype == torch.float32 and u.min() > 0 and u.max() < 1
    assert float(u.double().mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / 2**20) ** 0.5)
    counts = np.bincount((u.numpy() * 256).astype(np.int64), minlength=256)
    assert ((counts - 4096) ** 2 / 4096).sum() < 255 + 5 * 510**0.5


def test_the_ends_of_the_bits_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([0, 2**32 - 1])
    monkeypatch.setattr(cc.Rng, "bits", lambda *_, **__: ends)
    assert RNG.uniform(WHOLE, CPU).tolist() == [2.0**-24, 1 - 2.0**-24]


def test_all_subsets_are_as_likely() -> None:
    drawn = [tuple(RNG._replace(step=t).choose(WHOLE, CPU, 2, 5).tolist()) for t in range(2000)]
    assert all(a < b for a, b in drawn)
    counts = np.array([drawn.count(pair) for pair in sorted(set(drawn))])
    assert len(counts) == 10 and ((counts - 200) ** 2 / 200).sum() < 9 + 5 * 18**0.5
    assert torch.equal(RNG.choose(WHOLE, CPU, 5, 5), torch.arange(5)) and len(RNG.choose(WHOLE, CPU, 0, 5)) == 0
    assert torch.equal(RNG.choose(WHOLE, CPU, 9, 99), RNG._replace(rank=0).choose(WHOLE, CPU, 9, 99))


def test_wrong_arguments_say_so() -> None:
    with pytest.raises(ValueError, match=r"Rng.bits\('layer.weight', count=-1, stream=0\)"):
        RNG.bits(WHOLE, CPU, count=-1)
    with pytest.raises(ValueError, match="stream one of 0 to"):
        RNG.uniform(WHOLE, CPU, stream=1 << 30)
    with pytest.raises(ValueError, match=r"k=6, n=5\): k of n needs 0 <= k <= n"):
        RNG.choose(WHOLE, CPU, 6, 5)
