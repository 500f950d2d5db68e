"""What a residual may be stored in and how large it gets: bytes, the bound, resets, averages, training with them."""

from __future__ import annotations

import pytest
import torch

import compcomm as cc
from compcomm.state import quantized
from compcomm.testing.simulated import slot

NEAREST = cc.QSGD(bits=4, rounding="nearest", dense_below=1)


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 4.0), (torch.bfloat16, 2.001), (torch.int8, 1.07)], ids=str
)
def test_bytes_per_parameter(dtype: torch.dtype, most: float) -> None:
    """As many bytes as declared; work buffers are shared and no larger than the largest bucket."""
    layouts = [cc.Layout.of([(f"a{b}", (300, 1000)), (f"b{b}", (77, 13))]) for b in range(4)]
    simulator = cc.Simulator(cc.ErrorFeedback(NEAREST, dtype=dtype), 2)
    numel = layouts[0].numel
    for _ in range(3):
        buckets = [[cc.Bucket(torch.randn(numel), layout) for layout in layouts] for _ in range(2)]
        simulator.step(buckets)
    store = simulator.stores[0]
    declared = sum(
        s.size(segment.numel) * s.dtype.itemsize
        for layout in layouts
        for segment in layout.segments
        for s in simulator.reducer.slots(segment, 2).values()
    )
    assert store.nbytes() == declared <= most * 4 * numel
    lent = sum(t.numel() for t in simulator.contexts[0].arena._free)  # pyright: ignore[reportPrivateUsage]
    assert lent == (0 if dtype == torch.float32 else numel)


@pytest.mark.parametrize("ratio", [0.05, 0.25])
def test_residuals_stay_within_the_bound(ratio: float) -> None:
    """|e|^2 <= 4 (1 - delta) G^2/delta^2, for gradients that always point the same way and for random ones."""
    c = cc.TopK(ratio=ratio, dense_below=1)
    delta, d = c.delta(640), 640
    assert delta is not None
    simulator = cc.Simulator(cc.ErrorFeedback(cc.AllGather(c)), 1)
    g = torch.Generator().manual_seed(0)
    fixed, worst = torch.randn(1, d, generator=g), 0.0
    for t in range(200):
        gradient = fixed if t < 100 else torch.randn(1, d, generator=g)
        simulator.mean([{"w": gradient / gradient.norm()}])
        worst = max(worst, float(slot(simulator, 0, "residual")["w"].square().sum()))
    assert 1.0 < worst <= 4 * (1 - delta) / delta**2


def _loss(reducer: cc.Reducer, world: int = 2, steps: int = 250) -> float:
    """Distance to the optimum of a quadratic under noise, in units of the first."""
    g = torch.Generator().manual_seed(0)
    best, x = torch.randn(16, 64, generator=g), torch.zeros(16, 64)
    curve = torch.linspace(0.1, 1.0, 64)
    simulator = cc.Simulator(reducer, world)
    for _ in range(steps):
        given = [{"w": curve * (x - best) + 0.3 * torch.randn(16, 64, generator=g)} for _ in range(world)]
        x = x - 0.1 * simulator.mean(given)[0]["w"]
    return float((x - best).square().sum() / best.square().sum())


@pytest.mark.slow
@pytest.mark.parametrize("compressor", [cc.TopK(ratio=0.1, dense_below=1), NEAREST], ids=repr)
def test_coded_residuals_train_as_well(compressor: cc.Compressor) -> None:
    full = _loss(cc.ErrorFeedback(compressor))
    assert full < 0.1
    for dtype in (torch.bfloat16, torch.int8):
        assert _loss(cc.ErrorFeedback(compressor, dtype=dtype)) < 1.1 * full + 1e-3
    assert _loss(cc.ErrorFeedback(compressor, dtype=torch.int8, average=0.9, reset=100)) < 1.5 * full + 1e-2


def test_resets_and_averages_by_hand() -> None:
    """e <- (1 - a) e + a (d e + g - c), and zero again before every third step; c from the page's own Top-k."""
    c = cc.TopK(k=2, dense_below=1)
    simulator = cc.Simulator(cc.ErrorFeedback(cc.AllGather(c), decay=0.5, average=0.25, reset=3), 1)
    g, e = torch.Generator().manual_seed(3), torch.zeros(40)
    for t in range(10):
        gradient = torch.randn(1, 40, generator=g)
        if t % 3 == 0:
            e = torch.zeros(40)
        p = 0.5 * e + gradient.view(-1)
        sent = torch.where(p.abs() >= p.abs().topk(2).values[-1], p, 0.0)
        e = 0.75 * e + 0.25 * (p - sent)
        out = simulator.mean([{"w": gradient}])[0]["w"].view(-1)
        assert torch.allclose(out, sent, atol=1e-6)
        assert torch.allclose(slot(simulator, 0, "residual")["w"], e, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_a_bad_step_gives_its_payload_back(dtype: torch.dtype) -> None:
    """After a step that is undone the residual stands for e + g, within the storage's rounding."""
    simulator = cc.Simulator(cc.ErrorFeedback(cc.AllGather(cc.TopK(k=20, dense_below=1)), dtype=dtype), 2)
    reference = cc.Simulator(cc.ErrorFeedback(cc.AllGather(cc.TopK(k=20, dense_below=1))), 2)
    g = torch.Generator().manual_seed(0)
    for t in range(4):
        given = [{"w": torch.randn(4, 64, generator=g)} for _ in range(2)]
        if t == 2:
            given[1]["w"][0, 0] = float("inf")
        for s in (simulator, reference):
            s.mean(given)
            assert s.bad == (t == 2)
        if t == 2:
            break
    codec = simulator.reducer.slots(cc.Layout.of([("w", (4, 64))]).segments[0], 2)["residual"].codec.compressor
    assert codec is not None
    for rank in range(2):
        found = quantized.read(slot(simulator, rank, "residual")["w"], codec, 256, 0, 256)
        due = slot(reference, rank, "residual")["w"]
        assert float((found - due).abs().max()) < 0.1 and float(due.abs().max()) > 1.0
