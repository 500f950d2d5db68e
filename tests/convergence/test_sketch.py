"""What sketches lose: exact variances, exact expectations, exact linearity."""

from __future__ import annotations

import pytest
import torch

import compcomm as cc
from compcomm.compressors.sketch import quantiles
from compcomm.testing.inputs import vectors
from compcomm.testing.round_trip import draws, trip

D, S = 64, 16
FORMULAS = {"gaussian": (D + 1) / S, "count": (D - 1) / S, "srht": D / S - 1}


def _sketch(kind: str, size: int = S) -> cc.Sketch:
    return cc.Sketch(size, kind=kind, block=D, dense_below=1)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "omega"), FORMULAS.items())
@pytest.mark.parametrize("name", ["gaussian", "lognormal", "1-sparse", "constant"])
def test_variance_is_that_of_the_formula(kind: str, omega: float, name: str) -> None:
    """4.06, 3.94 and 3.00 times |x|^2 at d = 64 and s = 16, on every input: within 5 %, and within the sampling."""
    x = vectors(D)[name]
    c = _sketch(kind)
    assert c.omega(D) == omega
    sample = draws(c, x, 20_000).double()
    errors = (sample - x.double()).square().sum(1) / x.double().square().sum()
    assert float(errors.mean()) == pytest.approx(omega, rel=0.05)
    noise = float(errors.std()) / len(errors) ** 0.5
    assert float(errors.mean()) == pytest.approx(omega, abs=5 * noise + 1e-3)
    spread = sample.std(0) / len(sample) ** 0.5
    assert bool(((sample.mean(0) - x.double()).abs() <= 5 * spread + 1e-6).all()), "E C(x) is x, element by element"


def test_the_variance_between_two_vectors() -> None:
    """Var <h, R^T R g> = (|h|^2 |g|^2 + <h, g>^2)/s for Gaussian entries, less 2 sum h^2 g^2 / s for count."""
    g, h = vectors(D, 1)["gaussian"].double(), vectors(D, 2)["gaussian"].double()
    both = float(h.square().sum() * g.square().sum() + (h @ g) ** 2)
    for kind, due in (("gaussian", both / S), ("count", (both - 2 * float((h * g).square().sum())) / S)):
        along = draws(_sketch(kind), g.float(), 20_000).double() @ h
        assert float(along.var()) == pytest.approx(due, rel=0.05)
        assert float(along.mean()) == pytest.approx(float(h @ g), abs=5 * float(along.std()) / 20_000**0.5)


@pytest.mark.parametrize("kind", FORMULAS)
def test_it_is_linear(kind: str) -> None:
    """Payloads add up: R x + R y = R (x + y) with one seed, whatever the rank."""
    x, y = vectors(D, 3)["gaussian"], vectors(D, 4)["student-t"]
    c, rng = _sketch(kind), cc.Rng(1, 2)
    a, b, both = (trip(c, v, rng._replace(rank=r)).section.view(torch.float32) for r, v in enumerate((x, y, x + y)))
    assert torch.allclose(a + b, both, rtol=1e-5, atol=1e-5 * float(both.abs().max()))


def test_limits() -> None:
    """Nothing is lost by srht at s = d; a parameter of one element is sent exactly by count."""
    x = vectors(D)["student-t"]
    assert float(trip(_sketch("srht", D), x).error.norm()) <= 1e-6 * float(x.norm())
    assert float(trip(_sketch("count", D), x).error.norm()) > 0.1 * float(x.norm())
    one = trip(_sketch("count", 1), torch.tensor([3.25]))
    assert one.value.tolist() == [3.25] and one.error.tolist() == [0.0]


def test_rows_and_signs_are_fair() -> None:
    """A payload of ones: 64 elements on 4 sums, over 4000 draws; chi-squared of how often each sum is drawn."""
    x = torch.zeros(4)
    x[2] = 1.0
    c = cc.Sketch(4, kind="count", dense_below=1)
    layout = cc.Layout.of((f"w{i}", (1, 4)) for i in range(4000))
    sums = c.encode_(cc.Bucket(x.repeat(4000), layout), cc.Rng()).wire
    sums = sums[-4000 * 16 :].view(torch.float32).view(4000, 4)
    hit = sums.abs().sum(0)
    assert hit.sum() == 4000 and float(((hit - 1000) ** 2 / 1000).sum()) < 25
    assert abs(float(sums.sum())) < 5 * 4000**0.5


def test_the_normal_numbers_are_normal() -> None:
    q = quantiles().double()
    kurtosis = float(q.pow(4).mean())
    assert float(q.square().mean()) == pytest.approx(1.0, abs=1e-7)
    assert 2.99 < kurtosis < 3.0, "omega = (d + kurtosis - 2)/s is below (d + 1)/s"


def test_bytes_and_names() -> None:
    c = cc.Sketch(ratio=0.1)
    assert (c.section(1000), c.kept(1001), c.alignment, c.omega(1000)) == (400, 101, 4096, 9.0)
    assert repr(cc.ErrorFeedback(c)) == "ErrorFeedback(Contractive(Sketch(ratio=0.1)))"
    assert isinstance(cc.settle(c, 8), cc.AllReduce)


def test_wrong_arguments() -> None:
    for call, reason in {
        "Sketch()": "give either size",
        "Sketch(3, 0.5)": "give either size",
        "Sketch(0)": "size=0 is not a number of sums",
        "Sketch(2.5)": "size=2.5 is not a number of sums",
        "Sketch(ratio=0.0)": r"ratio=0.0 is not in \(0, 1\]",
        "Sketch(ratio=2)": r"ratio=2 is not in \(0, 1\]",
        "Sketch(9, kind='ams')": "kind='ams' is none of 'srht', 'count', 'gaussian'",
        "Sketch(9, block=100)": "block=100 is not a power of two",
        "Sketch(9, dense_below=-1)": "dense_below=-1",
    }.items():
        with pytest.raises(ValueError, match=reason):
            cc.parse(call)
    with pytest.raises(ValueError, match=r"size=9 exceeds a parameter of 8 elements. Use ratio"):
        cc.Sketch(9).section(8)
    with pytest.raises(ValueError, match=r"over the limit.*Use kind='srht'"):
        cc.Sketch(ratio=0.5, kind="gaussian").section(1 << 20)
