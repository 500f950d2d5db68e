"""Step time over the number of workers and over the rate of the link, as a PNG. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..reducer import Reducer
from ..report.extras import need
from ..report.plots import COLOURS
from . import units
from .buckets import cut
from .kernels import MANY, Kernels, calibrate, grown
from .methods import Method
from .models import Model
from .planner import Plan
from .step import predict

WORKERS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
RATES = tuple(10 ** (7 + i / 4) for i in range(17))
"""10 Mbit/s to 100 Gbit/s."""


def draw(plan: Plan, model: Model, methods: Sequence[Method], path: str | Path) -> Path:
    """Two panels: left over workers at the plan's rate, right over rates at the plan's workers. A vertical line marks
    the plan itself. Kernels are the plan's; how they grow with the workers is measured here where the plan's ranks did
    not."""
    need("matplotlib", "plan --png").use("Agg")
    pyplot = need("matplotlib.pyplot", "plan --png")
    figure, panels = pyplot.subplots(1, 2, figsize=(13, 5.8), sharey=True, layout="constrained")
    buckets = cut(model.shapes)
    known: dict[Any, Kernels] = {}

    def kernels(method: Method, reducer: Reducer | None) -> Kernels:
        if reducer not in known:
            planned = reducer == method.settled(plan.world)  # others take another route between more or fewer workers
            found = plan.kernels[method.text] if planned else calibrate(reducer, buckets, MANY)
            known[reducer] = grown(found, reducer, buckets)
        return known[reducer]

    def seconds(method: Method, world: int, rate: float) -> float:
        reducer = method.settled(world)
        measured = kernels(method, reducer)
        return predict(reducer, buckets, world, plan.link.at(rate), measured, plan.compute).seconds

    for n, method in enumerate(methods):
        style: dict[str, Any] = {"color": COLOURS[n % len(COLOURS)], "linestyle": "-" if n < len(COLOURS) else "--"}
        left = [seconds(method, world, plan.link.bandwidth) for world in WORKERS]
        right = [seconds(method, plan.world, rate) for rate in RATES]
        panels[0].plot(WORKERS, left, linewidth=1.8, label=method.short, **style)
        panels[1].plot([rate / 1e6 for rate in RATES], right, linewidth=1.8, **style)
    for axes, at, across in zip(
        panels,
        (plan.world, plan.link.bandwidth / 1e6),
        (f"workers, at {units.rate(plan.link.bandwidth)}", f"Mbit/s, {plan.world} workers"),
        strict=True,
    ):
        axes.axvline(at, color="#888888", linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(across)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    ticker = need("matplotlib.ticker", "plan --png")
    panels[0].set_xticks(WORKERS)
    panels[0].xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    panels[0].xaxis.set_minor_formatter(ticker.NullFormatter())
    panels[0].tick_params(axis="x", rotation=45)
    panels[0].set_ylabel("predicted seconds per step")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    latency = f"{units.duration(plan.link.latency)} per message"
    figure.suptitle(f"{plan.model}: {plan.numel:,} elements, {units.duration(plan.compute)} of computation, {latency}")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
    return target
