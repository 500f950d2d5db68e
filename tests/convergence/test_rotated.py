"""What a rotation does to the error: nothing to its bound, much to its typical size, and where it fails."""

from __future__ import annotations

from math import pi

import pytest
import torch

import compcomm as cc
from compcomm.testing.inputs import vectors
from compcomm.testing.round_trip import draws, trip

D = 1024
ONE_BIT = cc.Rotated(cc.SignScale(block=D, dense_below=1), block=D)


def _lost(c: cc.Compressor, x: torch.Tensor, count: int = 200) -> torch.Tensor:
    x64 = x.double()
    return (draws(c, x, count).double() - x64).square().sum(1) / x64.square().sum()


@pytest.mark.parametrize("kind", ["gaussian", "student-t", "lognormal", "ramp", "scales"])
def test_one_bit_loses_the_same_on_every_ordinary_input(kind: str) -> None:
    """1 - 2/pi = 0.363, as on Gaussian data: within 3 %, or less where a few elements have all the energy. Without the
    rotation those lose most of it."""
    x = vectors(D)[kind]
    found = float(_lost(ONE_BIT, x).mean())
    if kind in ("gaussian", "ramp", "scales"):
        assert found == pytest.approx(1 - 2 / pi, rel=0.03)
    assert found < (1 - 2 / pi) * 1.03
    if kind in ("student-t", "lognormal", "scales"):
        assert float(_lost(ONE_BIT.compressor, x, 2)[0]) > 1.5 * found


@pytest.mark.parametrize("d", [16, 256, 1024, 4096])
def test_two_equal_spikes_are_the_counter_example(d: int) -> None:
    """R (e_i + e_j) is 0 on one half and +-2/sqrt n on the other: signs with the mean magnitude lose half of it. With
    the scale |x|^2/|Rx|_1, unbiased for a uniformly random rotation, the loss is all of it. One spike: nothing is lost.
    """
    c = cc.Rotated(cc.SignScale(block=d, dense_below=1), block=d)
    one, two = torch.zeros(d), torch.zeros(d)
    one[d // 3] = two[1] = two[d // 3] = 1.0
    assert float(_lost(c, one, 20).max()) < 1e-12
    assert torch.allclose(_lost(c, two, 20), torch.tensor(0.5, dtype=torch.float64), atol=1e-6)
    t = trip(c, two)
    scale = float(two.norm() ** 2 / (two @ t.value))  # that of <x, decoded> = |x|^2
    assert float((t.value * scale - two).norm() ** 2 / two.norm() ** 2) == pytest.approx(1.0, abs=1e-5)


def test_errors_of_one_bit_are_exact() -> None:
    """|x - C(x)|^2 = |x|^2 - |C(x)|^2 for the mean magnitude, through the rotation, for every draw."""
    x = vectors(D + 37)["student-t"]
    c = cc.Rotated(cc.SignScale(block=64, dense_below=1), block=256)
    for value in draws(c, x, 20).double():
        whole, left, sent = (float(v.square().sum()) for v in (x.double(), x.double() - value, value))
        assert left == pytest.approx(whole - sent, rel=1e-5)


def test_a_rotated_sparsifier_loses_its_share() -> None:
    """E|x - C(x)|^2 = (d/k - 1)|x|^2 for unbiased rand-k, in any orthogonal basis; and all is kept at k = d."""
    x = vectors(300)["lognormal"]
    c = cc.Rotated(cc.RandK(k=75, unbiased=True, dense_below=1), block=64)
    lost = _lost(c, x, 4000)
    assert float(lost.mean()) == pytest.approx(3.0, abs=5 * float(lost.std()) / 4000**0.5)
    assert float(_lost(cc.Rotated(cc.RandK(ratio=1.0, dense_below=1)), x, 1)) < 1e-12


def test_properties_are_those_of_the_compressor_inside() -> None:
    for c in (
        cc.SignScale(),
        cc.QSGD(bits=4),
        cc.TopK(ratio=0.1),
        cc.RandK(k=9, unbiased=True),
        cc.Cast(torch.float16),
    ):
        r = cc.Rotated(c, 64)
        for n in (70, 5000):
            assert (r.section(n), r.delta(n), r.omega(n), r.kept(n), r.gain(n)) == (
                c.section(n), c.delta(n), c.omega(n), c.kept(n), c.gain(n)
            )  # fmt: skip
        assert (r.linear, r.unbiased, r.dtype, r.sparse) == (c.linear, c.unbiased, c.dtype, False)
    assert cc.Rotated(cc.QSGD(bits=4, block=48), 64).alignment == 192
    assert repr(cc.ErrorFeedback(cc.Rotated(cc.QSGD(bits=4)))) == "ErrorFeedback(Contractive(Rotated(QSGD(bits=4))))"
