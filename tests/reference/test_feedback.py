"""Feedback schemes equal their pages, step after step, memory and mean, within the rounding of fp32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import compcomm as cc
from compcomm.state import quantized
from compcomm.testing.simulated import slot

from . import qsgd, topk
from .econtrol import EControl
from .ef21 import EF21
from .error_feedback import ErrorFeedback

F = np.float32
N, STEPS = 1200, 20
Code = Callable[[np.ndarray, int, int], np.ndarray]


def _topk(y: np.ndarray, rank: int, step: int) -> np.ndarray:
    return topk.decode(topk.encode(y, 60), len(y), 60)


def _qsgd(y: np.ndarray, rank: int, step: int) -> np.ndarray:
    return qsgd.decode(qsgd.encode(y, 7, 4, False, 128, 1.0, None), len(y), 7, 4, 128)


CODES = {
    "topk": (cc.TopK(k=60), _topk),
    "qsgd": (cc.QSGD(bits=4, rounding="nearest", block=128), _qsgd),
}


def _gradients(world: int, step: int) -> list[np.ndarray]:
    generator = np.random.default_rng(100 * world + step)
    return [generator.standard_normal(N).astype(F) for _ in range(world)]


def _close(found: torch.Tensor, due: np.ndarray, step: int) -> None:
    """All but a few elements: where rounding tips a code or a place in the selection, they differ by that."""
    off = np.abs(found.view(-1).numpy() - due)
    assert np.mean(off > 1e-5 * (1 + step)) < 0.01, (step, float(off.max()))


def _run(simulator: cc.Simulator, gradients: list[np.ndarray]) -> torch.Tensor:
    return simulator.mean([{"w": torch.from_numpy(g).view(2, -1)} for g in gradients])[0]["w"]


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("momentum", [1.0, 0.25])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("name", CODES)
def test_ef21(name: str, start: bool, momentum: float, world: int) -> None:
    compressor, code = CODES[name]
    simulator = cc.Simulator(cc.EF21(cc.AllGather(compressor), momentum=momentum, start=start), world)
    page = EF21(world, N, code, momentum, start)
    for t in range(STEPS):
        given = _gradients(world, t)
        _close(_run(simulator, given), page.step(given, t), t)
        for rank in range(world):
            _close(slot(simulator, rank, "estimate")["w"], page.estimate[rank], t)


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("eta", [0.02, 0.2])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("name", CODES)
def test_econtrol(name: str, start: bool, eta: float, world: int) -> None:
    compressor, code = CODES[name]
    simulator = cc.Simulator(cc.EControl(cc.AllGather(compressor), eta=eta, start=start), world)
    page = EControl(world, N, code, eta, start)
    for t in range(STEPS):
        given = _gradients(world, t)
        _close(_run(simulator, given), page.step(given, t), t)
        for rank in range(world):
            _close(slot(simulator, rank, "estimate")["w"], page.estimate[rank], t)
            _close(slot(simulator, rank, "error")["w"], page.error[rank], t)


def _eight_bits(e: np.ndarray) -> np.ndarray:
    return qsgd.decode(qsgd.encode(e, 127, 8, False, 64, 1.0, None), len(e), 127, 8, 64)


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize(("decay", "average", "reset"), [(1.0, 1.0, 0), (0.9, 1.0, 4), (1.0, 0.25, 0), (0.5, 0.5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("name", CODES)
def test_error_feedback(name: str, dtype: torch.dtype, decay: float, average: float, reset: int, world: int) -> None:
    compressor, code = CODES[name]
    scheme = cc.ErrorFeedback(cc.AllGather(compressor), decay=decay, dtype=dtype, average=average, reset=reset)
    simulator = cc.Simulator(scheme, world)
    store = _eight_bits if dtype == torch.int8 else np.asarray
    page = ErrorFeedback(world, N, code, decay, average, reset, store)
    segment = cc.Layout.of([("w", (2, N // 2))]).segments[0]
    kept = simulator.reducer.slots(segment, world)["residual"].codec
    codec = None if kept is None else kept.compressor
    for t in range(STEPS):
        given = _gradients(world, t)
        due = np.sum(page.step(given, t), axis=0, dtype=F) / F(world)
        _close(_run(simulator, given), due, t)
        for rank in range(world):
            held = slot(simulator, rank, "residual")["w"]
            _close(held if codec is None else quantized.read(held, codec, N, 0, N), page.residual[rank], t)
