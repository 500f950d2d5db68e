"""TernGrad: its exact variance, the worst case, what clipping does, and the packing by five to the byte."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.ops import native
from compcomm.ops.reference import trits
from compcomm.testing.inputs import vectors
from compcomm.testing.round_trip import draws, trip
from tests.ops.sparse_case import using

D = 256
OPS = torch.ops.compcomm
BACKENDS = ("reference", *native.isas())


def _coder(clip: float | None = None, block: int = D) -> cc.TernGrad:
    return cc.TernGrad(clip, block, dense_below=1)


def _variance(x: Tensor) -> float:
    """|x|_max |x|_1 - |x|^2."""
    x = x.double()
    return float(x.abs().max() * x.abs().sum() - x.square().sum())


def _errors(c: cc.Compressor, x: Tensor, count: int = 4000) -> Tensor:
    return (draws(c, x, count).double() - x.double()).square().sum(1)


@pytest.mark.parametrize("kind", ["gaussian", "student-t", "lognormal", "ramp"])
def test_the_variance_is_the_exact_one(kind: str) -> None:
    x = vectors(D, 3)[kind]
    errors = _errors(_coder(), x)
    assert float(errors.mean()) == pytest.approx(_variance(x), abs=5 * float(errors.std()) / sqrt(4000))


@pytest.mark.parametrize("n", [2, 16, 512])
def test_omega_is_attained(n: int) -> None:
    x = torch.full((n,), 1 / (1 + sqrt(n)))
    x[n // 2] = -1.0
    omega = _coder(block=512).omega(n)
    assert omega == pytest.approx(_variance(x) / float(x.double().square().sum()), rel=1e-6)


def test_the_largest_and_all_of_equal_size_are_exact() -> None:
    for name in ("1-sparse", "constant", "negative", "alternating"):
        for n in (1, 17, 300):
            t = trip(_coder(), vectors(n)[name])
            assert torch.equal(t.value, t.y), name
    x = vectors(700)["student-t"]
    value = trip(_coder(), x).value
    for part, sent in zip(x.split(D), value.split(D), strict=True):
        place = part.abs().argmax()
        assert sent[place] == part[place]
        assert set((sent / part.abs().max()).tolist()) <= {-1.0, 0.0, 1.0}


def test_clipping_cuts_at_root_mean_squares() -> None:
    """Beyond c sigma all is sent as c sigma; the others stay unbiased, with the smaller variance of the smaller s."""
    x = vectors(D, 3)["student-t"].clone()
    s = 2.5 * float(x.double().square().mean().sqrt())
    cut = x.abs() > s
    assert 0 < int(cut.sum()) < 20
    sample = draws(_coder(2.5), x, 4000).double()
    assert torch.allclose(sample[0, cut], (x[cut].sign() * s).double(), rtol=1e-6)
    assert (sample[:, cut] == sample[0, cut]).all()
    clipped = x.double().clamp(-s, s)
    errors = (sample - clipped).square().sum(1)
    assert float(errors.mean()) == pytest.approx(_variance(clipped), abs=5 * float(errors.std()) / sqrt(4000))
    assert float(errors.mean()) < 0.7 * _variance(x)
    for quiet in ("alternating", "1-sparse"):  # sigma is the size of the elements, or far below the only one
        t = trip(_coder(2.5), vectors(D)[quiet])
        assert torch.equal(t.value, t.y) is (quiet == "alternating")


def test_clipping_is_no_contraction() -> None:
    """Most elements at s/4, and one so large that s = 2.5 sigma: 1.6 times the square is lost."""
    n = 512
    x = torch.full((n,), 0.25)
    x[0] = sqrt(n / 6.25 - (n - 1) / 16)
    assert float(x.square().mean().sqrt()) * 2.5 == pytest.approx(1.0, rel=1e-6)
    lost = float(_errors(_coder(2.5, 512), x, 200).mean()) / float(x.square().sum())
    assert lost == pytest.approx(1.62, abs=0.05)
    assert cc.TernGrad(2.5).delta(n) is None
    with pytest.raises(ValueError, match=r"Use TernGrad\(clip=2.5\) without feedback"):
        cc.ErrorFeedback(cc.TernGrad(clip=2.5))
    assert repr(cc.ErrorFeedback(cc.TernGrad())) == "ErrorFeedback(Contractive(TernGrad()))"


def test_squares_that_do_not_fit_clip_nothing() -> None:
    for scale in (1e-25, 1e25):
        x = vectors(D)["1-sparse"] * scale
        t = trip(_coder(2.5), x)
        assert t.payload.status[0] == 0 and torch.equal(t.value, x)


@pytest.mark.parametrize("numel", [1, 15, 16, 17, 79, 80, 81, 95, 96, 97, 160, 512, 1000])
def test_five_to_a_byte(numel: int) -> None:
    digits = torch.randint(0, 3, (numel,), dtype=torch.uint8, generator=torch.Generator().manual_seed(numel))
    raw = trits.pack(digits)
    assert len(raw) == trits.packed_bytes(numel) == numel // 80 * 16 + min(16, numel % 80)
    assert int(raw.max()) < 243
    assert torch.equal(trits.unpack(raw, numel), digits)


def _receive(backend: str, stream: Tensor, numel: int, block: int = 512) -> Tensor:
    sizes = torch.ones(-(-numel // block)).view(torch.uint8)
    pad = torch.full((-len(stream) % 4,), 0xFF, dtype=torch.uint8)
    wire, out = torch.cat((sizes, stream, pad)), torch.full((numel,), torch.nan)
    table = torch.tensor([[0, -1, numel, 0, 0, 0, 0, 0]])
    with using(backend):
        OPS.ternary_decode(wire[None], table, torch.zeros(1, dtype=torch.uint8), out, 1.0, False, block)
    return out


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_wire_to_the_bit(backend: str) -> None:
    """Byte l of a group: elements l, 16 + l, 32 + l, 48 + l, 64 + l, the first at the low end."""
    stream = torch.zeros(17, dtype=torch.uint8)
    stream[3], stream[16] = 1 + 3 * 2 + 9 * 0 + 27 * 1 + 81 * 2, 2
    out = _receive(backend, stream, 81)
    assert out[[3, 19, 35, 51, 67, 80]].tolist() == [0.0, 1.0, -1.0, 0.0, 1.0, 1.0]
    assert int((out == -1).sum()) == 81 - 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_byte_decodes(backend: str) -> None:
    """Those above 242 count as 243 less."""
    stream = torch.arange(256, dtype=torch.uint8)
    out = _receive(backend, stream, 1280)
    due = trits.unpack((torch.arange(256) % 243).to(torch.uint8), 1280).float() - 1
    assert torch.equal(out, due) and set(out.tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_arguments_of_the_ops(backend: str) -> None:
    x, wire, status = torch.zeros(17), torch.zeros(64, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    table, gain = torch.tensor([[0, -1, 17, 0, 0, 0, 0, 0]]), torch.ones(1)
    with using(backend):
        for clip, block, reason in ((0.5, 512, "clip=0.5"), (-1.0, 512, "clip"), (0.0, 24, "multiple of 16")):
            with pytest.raises(ValueError, match=reason):
                OPS.ternary_encode(x, None, wire, table, status, 1.0, 1.0, gain, clip, block, 0, 0)
        with pytest.raises(ValueError, match="gain has 2"):
            OPS.ternary_encode(x, None, wire, table, status, 1.0, 1.0, torch.ones(2), 0.0, 512, 0, 0)
        with pytest.raises(ValueError, match="multiple of 16"):
            OPS.ternary_decode(wire[None], table, status, x, 1.0, False, 0)
        OPS.ternary_encode(x, None, wire[:20], table, status, 1.0, 1.0, gain, 0.0, 512, 0, 0)
        with pytest.raises(ValueError, match="ends outside the wire"):
            OPS.ternary_encode(x, None, wire[:19], table, status, 1.0, 1.0, gain, 0.0, 512, 0, 0)
        with pytest.raises(ValueError, match="ends outside messages"):
            OPS.ternary_decode(wire[None, :19], table, status, x, 1.0, False, 512)
