"""Milliseconds to give 160 layers one of 16 densities each, in 10,000 buckets, on one core.

python benchmarks/allocation.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from compcomm.adaptive.allocate import allocate, allocate_bytes

LAYERS, CANDIDATES, BUCKETS, RUNS = 160, 16, 10_000, 11
UNIFORM = CANDIDATES // 2


def layers(seed: int = 0) -> tuple[Any, Any]:
    """Errors and sizes as top-k has them: no candidate is beaten in both, so none can be left out.

    Layers of 10**3 to 10**8 elements, densities 0.0006 to 0.1, errors norm * (1 - density**decay).
    """
    draw = np.random.default_rng(seed)
    numel = np.exp(draw.uniform(np.log(1e3), np.log(1e8), (LAYERS, 1)))
    norm, decay = np.exp(draw.normal(0, 1, (LAYERS, 1))), draw.uniform(0.05, 0.6, (LAYERS, 1))
    density = 0.01 * 2.0 ** np.linspace(-4, 3.5, CANDIDATES)
    return norm * (1 - density**decay), np.ceil(6 * numel * density).astype(np.int64)


def measure() -> dict[str, Any]:
    """Median milliseconds of both problems, and how many times smaller than uniform the first one's choice is."""
    errors, sizes = layers()
    uniform = np.full(LAYERS, UNIFORM)
    budget, limit = float(errors[:, UNIFORM].sum()), int(sizes[:, UNIFORM].sum())
    chosen = allocate(errors, sizes, budget=budget, reference=uniform, buckets=BUCKETS)
    return {
        "layers": LAYERS,
        "candidates": CANDIDATES,
        "buckets": BUCKETS,
        "allocate_ms": _median(lambda: allocate(errors, sizes, budget=budget, reference=uniform, buckets=BUCKETS)),
        "allocate_bytes_ms": _median(
            lambda: allocate_bytes(errors, sizes, limit=limit, reference=uniform, buckets=BUCKETS)
        ),
        "times_smaller_than_uniform": limit / int(sizes[np.arange(LAYERS), chosen].sum()),
    }


def _median(call: Callable[[], Any]) -> float:
    seconds: list[float] = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds)


if __name__ == "__main__":
    print(measure())
