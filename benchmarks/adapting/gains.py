"""Recorded gradients: bytes and error of one setting for all layers, and of what L-GreCo chooses at the same error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import record
from torch import Tensor

import compcomm as cc
from compcomm.adaptive.telemetry import Telemetry
from compcomm.core import structure
from compcomm.core.state import State
from compcomm.transports.dry_run import plan

Row = dict[str, Any]
MODELS = ("digits", "transformer", "resnet50", "gpt2")
SMALL = ", dense_below=1"
"""For the digits' network, whose layers are smaller than what is worth compressing elsewhere."""
FAMILIES = {
    "density": "TopK(ratio=0.01{})",
    "density, random": "RandK(ratio=0.01{})",
    "bits": "QSGD(bits=4, rounding='nearest'{})",
    "bits, min-max": "MinMax(bits=5, rounding='nearest'{})",
    "rank": "PowerSGD(4)",
}
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)


def run(models: tuple[str, ...], folder: Path, quick: bool = False) -> tuple[list[Row], list[Row]]:
    """A row per model and family, and the ratio over alpha for every model's densities."""
    rows: list[Row] = []
    curve: list[Row] = []
    for model in models:
        named = record.load(model, folder, quick=quick)
        for family, text in FAMILIES.items():
            part = text.format(SMALL if model == "digits" else "")
            rows.append({"model": model, "family": family, **compare(named, part)})
            print(line(rows[-1]), flush=True)
        if model == "digits":  # the published reference figure of this network
            part = "TopK(ratio=0.016, dense_below=1)"
            rows.append({"model": model, "family": "density, 1.6 %", **compare(named, part)})
            print(line(rows[-1]), flush=True)
        part = FAMILIES["density"].format(SMALL if model == "digits" else "")
        if model != "gpt2":
            for alpha in ALPHAS:
                found = compare(named, part, alpha)
                curve.append({"model": model, "alpha": alpha, "ratio": found["coded_ratio"]})
        del named
    return rows, curve


def compare(named: dict[str, Tensor], part: str, alpha: float = 1.0) -> Row:
    """One step of the controller itself, in the simulator: it gathers this gradient, measures, and decides."""
    layout = cc.Layout.of((n, t.shape) for n, t in named.items())
    if alpha < 1.0:
        try:
            simulator = decided(cc.LGreCo(cc.parse(part), every=1, window=1, alpha=alpha), named)
        except ValueError:  # no candidate loses so little
            return {"coded_ratio": None}
    else:
        simulator = decided(cc.LGreCo(cc.parse(part), every=1, window=1, alpha=alpha), named)
    store = simulator.stores[0]
    ((control, segments),) = structure.controllers(simulator.reducer, store.segments())
    t = control.telemetry(segments, store)
    now = cc.settle(structure.current(simulator.reducer, State(store, layout)), 2)
    dense = 4 * layout.numel
    uniform = sum(p.sent for p in plan(cc.settle(cc.parse(part), 2), layout, 2))
    chosen = sum(p.sent for p in plan(now, layout, 2))
    here, there = totals(t, t.reference), totals(t, t.current)
    if alpha == 1.0 and not (there[0] <= here[0] * (1 + 1e-9) and there[1] <= here[1]):
        raise AssertionError(f"{part}: L-GreCo is worse than uniform: {there} against {here}.")
    return {
        "reducer": part,
        "uniform_bytes": uniform,
        "chosen_bytes": chosen,
        "uniform_ratio": dense / uniform,
        "chosen_ratio": dense / chosen,
        "coded_ratio": 4 * int(t.numel.sum()) / there[1],
        "gain": uniform / chosen,
        "coded_gain": here[1] / there[1],
        "uniform_error": here[0],
        "chosen_error": there[0],
        "relative_error": here[0] / float(t.norms.sum()),
        "coded_share": float(t.numel.sum()) / layout.numel,
        "layers": [
            {"name": n, "numel": int(d), "setting": t.settings[c], "norm": float(norm)}
            for n, d, c, norm in zip(t.names, t.numel, t.current, t.norms, strict=True)
        ],
    }


def decided(reducer: cc.Reducer, named: dict[str, Tensor]) -> cc.Simulator:
    simulator = cc.Simulator(reducer, 1)
    simulator.mean([named])
    return simulator


def totals(t: Telemetry, positions: Any) -> tuple[float, int]:
    """Sum of errors, and bytes of the coded parameters."""
    rows = np.arange(len(t.names))
    return float(t.errors[rows, positions].sum()), int(t.sizes[rows, positions].sum())


def line(row: Row) -> str:
    return (
        f"{row['model']:12} {row['family']:16} {row['reducer']:42} {row['uniform_ratio']:8.2f}x -> "
        f"{row['chosen_ratio']:8.2f}x  gain {row['gain']:.3f}, of coded parameters {row['coded_gain']:.3f}"
    )
