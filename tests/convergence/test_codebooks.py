"""What codebook quantisers lose: the tables of Lloyd-Max and of the best uniform grid, after a rotation and without."""

from __future__ import annotations

from itertools import pairwise
from math import pi, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.compressors.codebook import Codebook, least_cosine
from compcomm.compressors.gaussian import distortion, lloyd_max, uniform
from compcomm.testing.inputs import coding, vectors
from compcomm.testing.round_trip import draws, trip

LEVELS = {
    1: [0.79788],
    2: [0.45278, 1.51042],
    3: [0.24509, 0.75601, 1.34391, 2.15195],
    4: [0.12840, 0.38805, 0.65676, 0.94234, 1.25623, 1.61805, 2.06902, 2.73259],
}
LOST = {0: 1.0, 1: 0.36338, 2: 0.11748, 3: 0.034548, 4: 0.009501, 5: 0.0025047}
CLIP = [0.797885, 1.493535, 2.051068, 2.513931, 2.916094, 3.276597, 3.6111, 3.9222]
LOST_BY_GRID = [0.36338, 0.118846, 0.037440, 0.011543, 0.0034952, 0.0010400, 3.04e-4, 8.77e-5]
D = 4096


def _inputs(count: int = 24) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    normal = torch.randn(count, D, generator=g)
    return {"gaussian": normal, "lognormal": torch.randn(count, D, generator=g).exp() * normal.sign()}


def _lost(c: cc.Compressor, rows: Tensor) -> float:
    """Mean of |x - C(x)|^2/|x|^2 over the rows, each a parameter of its own."""
    layout = cc.Layout.of((f"w{i}", (1, rows.shape[1])) for i in range(len(rows)))
    value = c.encode_(cc.Bucket(rows.reshape(-1).clone(), layout), cc.Rng(seed=1)).dense(layout).flat
    error = value.view_as(rows).double() - rows.double()
    return float((error.square().sum(1) / rows.double().square().sum(1)).mean())


@pytest.mark.parametrize("bits", range(1, 9))
def test_lloyd_max_levels(bits: int) -> None:
    """Each level is the mean of its cell (an independent integral), and the table's figures are met."""
    half = lloyd_max(bits)
    assert len(half) == 1 << (bits - 1)
    assert all(c * 65536 == round(c * 65536) for c in half)
    assert half[: len(LEVELS.get(bits, ()))] == pytest.approx(LEVELS.get(bits, ()), abs=2e-5)
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(half)), np.inf]
    from scipy import stats  # seconds, for whoever only collects this file

    means = [stats.truncnorm.mean(a, b) for a, b in pairwise(edges)]
    assert list(half) == pytest.approx(means, abs=2e-5)
    if bits in LOST:
        assert distortion(list(half)) == pytest.approx(LOST[bits], rel=2e-4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_best_grid(bits: int) -> None:
    half = uniform(bits)
    assert half[-1] == pytest.approx(CLIP[bits - 1], rel=6e-4)
    assert distortion(list(half)) == pytest.approx(LOST_BY_GRID[bits - 1], rel=2e-3)
    for other in (0.98, 1.02):  # a minimum
        assert distortion([other * c for c in half]) > distortion(list(half))


def test_distortion_is_the_integral() -> None:
    from scipy import integrate, stats

    half = np.array(lloyd_max(3))

    def loss(t: float) -> float:
        return float((np.abs(half - t).min()) ** 2 * stats.norm.pdf(t))

    assert distortion(list(half)) == pytest.approx(2 * integrate.quad(loss, 0, 12, limit=200)[0], rel=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "lognormal"])
@pytest.mark.parametrize("bits", range(1, 6))
def test_rotated_lloyd_max(bits: int, kind: str) -> None:
    """EDEN: D_b with the projecting scale, 1/(1 - D_b) - 1 with the unbiased one."""
    rows = _inputs()[kind]
    mse = _lost(cc.Rotated(cc.LloydMax(bits, dense_below=0)), rows)
    dot = _lost(cc.Rotated(cc.LloydMax(bits, "dot", dense_below=0)), rows)
    assert mse == pytest.approx(LOST[bits], rel=0.03)
    assert dot == pytest.approx(1 / (1 - LOST[bits]) - 1, rel=0.03)


@pytest.mark.parametrize("kind", ["gaussian", "lognormal"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_rotated_grid(bits: int, kind: str) -> None:
    rows = _inputs(150)[kind]  # with many bits, one element beyond the clip range loses more than the rest of its block
    found = _lost(cc.Rotated(cc.Grid(bits, block=D, dense_below=0)), rows)
    assert found == pytest.approx(LOST_BY_GRID[bits - 1], rel=0.03)


@pytest.mark.parametrize("kind", ["gaussian", "lognormal"])
def test_rotated_signs(kind: str) -> None:
    """DRIVE, with both of its scales; and one bit of a codebook is a sign."""
    rows = _inputs()[kind]
    assert _lost(cc.Rotated(cc.SignScale(block=D, dense_below=0)), rows) == pytest.approx(1 - 2 / pi, rel=0.03)
    assert _lost(cc.Rotated(cc.SignScale("dot", D, 0)), rows) == pytest.approx(pi / 2 - 1, rel=0.03)
    for sign, level in ((cc.SignScale("l1", D, 0), "mse"), (cc.SignScale("dot", D, 0), "dot")):
        value = trip(sign, rows[0]).value
        assert torch.allclose(value, trip(cc.LloydMax(1, level, dense_below=0), rows[0]).value, rtol=1e-5)


@pytest.mark.parametrize("bits", [0.1, 0.5, 1.5, 2.5, 3.25])
def test_fractional_bits_lie_between_their_neighbours(bits: float) -> None:
    """The mixture of the two losses, in the proportion of the window; and as many bytes as bits."""
    low, share = int(bits), round((bits % 1) * D) / D
    due = share * LOST[low + 1] + (1 - share) * LOST[low]
    c = cc.LloydMax(bits, dense_below=0)
    for kind, rows in _inputs(40).items():
        assert _lost(cc.Rotated(c), rows) == pytest.approx(due, rel=0.03), kind
    assert 8 * c.section(D) == pytest.approx(bits * D + 32, abs=40)
    dot = _lost(cc.Rotated(cc.LloydMax(bits, "dot", dense_below=0)), _inputs(40)["gaussian"])
    assert dot == pytest.approx(1 / (1 - due) - 1, rel=0.05)


@pytest.mark.parametrize("n", [1, 17, 300, 1000])
@pytest.mark.parametrize("bits", [1, 2.5, 3, 6])
def test_identities_for_every_input_and_draw(bits: float, n: int) -> None:
    """mse: |x - C|^2 = |x|^2 - |C|^2. dot: <x, C> = |x|^2."""
    for kind, x in vectors(n).items():
        for step in range(3):
            t = trip(coding(cc.LloydMax(bits, block=256)), x, cc.Rng(step=step))
            y, value = t.y.double(), t.value.double()
            size = float(y @ y)
            lost = float((y - value).square().sum())
            assert lost == pytest.approx(size - float(value @ value), abs=4e-6 * size), kind
            if bits >= 1:
                value = trip(coding(cc.LloydMax(bits, "dot", 256)), x, cc.Rng(step=step)).value.double()
                assert float(value @ y) == pytest.approx(size, rel=1e-5), kind


@pytest.mark.parametrize("n", [1, 17, 300, 1000])
def test_grid_projects_and_signs_keep_the_product(n: int) -> None:
    for kind, x in vectors(n).items():
        y = x.double()
        size = float(y @ y)
        for bits in (1, 4, 8):
            value = trip(coding(cc.Grid(bits)), x).value.double()
            assert float((y - value).square().sum()) == pytest.approx(size - float(value @ value), abs=4e-6 * size), (
                kind
            )
        value = trip(coding(cc.SignScale("dot")), x).value.double()
        assert float(value @ y) == pytest.approx(size, rel=1e-4), kind


def test_half_a_bit_keeps_the_product_where_the_window_sees_something() -> None:
    x = vectors(300)["gaussian"]
    for step in range(5):
        value = trip(coding(cc.LloydMax(0.5, "dot")), x, cc.Rng(step=step)).value
        assert float(value.double() @ x.double()) == pytest.approx(float(x.double().square().sum()), rel=1e-5)
        assert int((value != 0).sum()) == 150


def test_every_element_is_in_the_window_equally_often() -> None:
    n, count = 48, 8000
    seen = (draws(coding(cc.LloydMax(0.3, block=64)), torch.ones(n), count) != 0).double()
    assert (seen.sum(1) == 14).all(), "h = round(0.3 * 48)"
    share = 14 / n
    assert (seen.mean(0) - share).abs().max() < 5 * sqrt(share * (1 - share) / count)


def test_all_ranks_draw_one_window_and_every_step_another() -> None:
    x = vectors(1000)["gaussian"]
    c = coding(cc.LloydMax(0.5))
    windows = [trip(c, x, cc.Rng(step=step, rank=rank)).value != 0 for step in range(2) for rank in range(2)]
    assert torch.equal(windows[0], windows[1]) and torch.equal(windows[2], windows[3])
    assert not torch.equal(windows[0], windows[2])


def test_half_a_bit_attains_its_delta_on_a_spike() -> None:
    """E|x - C|^2 = (1 - 1/n)|x|^2: the spike is in the window with probability h/n, and then 1/h of it is sent."""
    x = vectors(64)["1-sparse"]
    errors = (draws(coding(cc.LloydMax(0.5, block=64)), x, 4000) - x).double().square().sum(1) / 6.25
    assert float(errors.mean()) == pytest.approx(1 - 1 / 64, abs=1e-3)


@pytest.mark.parametrize("c", [cc.LloydMax(2), cc.LloydMax(4), cc.Grid(3), cc.Grid(8)], ids=repr)
def test_delta_is_a_bound_and_not_far_from_the_worst(c: Codebook) -> None:
    """A search for bad inputs, k equal spikes over equal others: none beats the bound, the worst comes within a third
    of it (the bound may mix elements in proportions that n elements do not have)."""
    for n in (16, 512):
        delta, worst = least_cosine(c.halves, n), 1.0
        edges = [(a + b) / 2 * (1 + e) for h in c.halves for a, b in pairwise(h) for e in (-1e-3, 1e-3)]
        for k in (1, 2, 3, 5, 8):
            for a in (0.0, *edges):
                rest = (n - (n - k) * a * a) / k
                if rest > 0:
                    x = torch.full((n,), a)
                    x[:k] = sqrt(rest)
                    value = trip(coding(c), x).value.double()
                    worst = min(worst, float(value @ value / x.double().square().sum()))
        assert delta <= worst + 1e-6
        assert worst < 1.35 * delta + 1e-3
