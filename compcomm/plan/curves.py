"""Step time over the number of workers and over the rate of the link, as a PNG. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.optional import need
from ..core.reducer import Reducer
from ..report.plots import TEN
from . import units
from .buckets import cut
from .hosts import Setting
from .kernels import MANY, Kernels, calibrate, grown
from .methods import PLAIN, Method
from .models import Model
from .result import Plan

WORKERS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
RATES = tuple(10 ** (7 + i / 4) for i in range(17))
"""10 Mbit/s to 100 Gbit/s."""


def draw(plan: Plan, model: Model, methods: Sequence[Method], path: str | Path) -> Path:
    """Two panels: left over workers at the plan's rate, right over rates at the plan's workers. A vertical line marks
    the plan itself, and the thickest line what it recommends. Kernels are the plan's; how they grow with the workers is
    measured here where the plan's ranks did not."""
    need("matplotlib", "plan --png").use("Agg")
    pyplot = need("matplotlib.pyplot", "plan --png")
    figure, panels = pyplot.subplots(1, 2, figsize=(13, 6.2), sharey=True, layout="constrained")
    buckets = cut(model.shapes)
    seen = plan.host.seen(buckets)
    known: dict[Any, Kernels] = {}

    def kernels(method: Method, reducer: Reducer | None) -> Kernels:
        if reducer not in known:
            # Others take another route between more or fewer workers.
            planned = reducer == plan.host.resolved(method, plan.world)
            rows = plan.host.rows
            found = plan.kernels[method.text] if planned else calibrate(reducer, seen, MANY, rows=rows)
            known[reducer] = found if rows else grown(found, reducer, seen)
        return known[reducer]

    def seconds(method: Method, world: int, rate: float) -> float:
        reducer = plan.host.resolved(method, world)
        setting = Setting(world, plan.link.at(rate), kernels(method, reducer), plan.compute)
        return plan.host.predict(method, buckets, setting).seconds

    workers = [w for w in WORKERS if _fits(plan, w)]
    looks = styles([method.text for method in methods], plan.recommendation.method)
    for method in methods:
        look = looks[method.text]
        panels[0].plot(workers, [seconds(method, w, plan.link.bandwidth) for w in workers], label=method.short, **look)
        panels[1].plot(RATES, [seconds(method, plan.world, rate) for rate in RATES], **look)
    for axes, at in zip(panels, (plan.world, plan.link.bandwidth), strict=True):
        axes.axvline(at, color="#bbbbbb", linewidth=1.2, zorder=1, label="this plan")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    _label(plan, panels)
    legend = figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    legend.set_title(small_print(plan), prop={"size": 9})  # as the legend's title it has a place of its own
    figure.suptitle(title(plan, methods), fontsize=13)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    pyplot.close(figure)
    return target


def _fits(plan: Plan, workers: int) -> bool:
    try:
        plan.host.check(workers)
    except ValueError:
        return False
    return True


def styles(texts: Sequence[str], recommended: str) -> dict[str, dict[str, Any]]:
    """How each method's line looks: a colour of its own (dashed from the eleventh on), thick where recommended, and
    under the others, which it would hide. DDP is thin, dotted, black and on top of what sends the same bytes.

    >>> found = styles(["DDP", "Exact()", "TopK(ratio=0.01)"], "TopK(ratio=0.01)")
    >>> [(look["linestyle"], look["linewidth"]) for look in found.values()]
    [(':', 1.4), ('-', 2.0), ('-', 4.0)]
    """
    found: dict[str, dict[str, Any]] = {}
    for n, text in enumerate(text for text in texts if text != PLAIN.text):
        chosen = text == recommended
        found[text] = {
            "color": TEN[n % len(TEN)],
            "linestyle": "-" if n < len(TEN) else "--",
            "linewidth": 4.0 if chosen else 2.0,
            "zorder": 2 if chosen else 3,
        }
    thick = 3.0 if recommended == PLAIN.text else 1.4
    found[PLAIN.text] = {"color": "#000000", "linestyle": ":", "linewidth": thick, "zorder": 4}
    return {text: found[text] for text in texts}


def title(plan: Plan, methods: Sequence[Method]) -> str:
    """What is planned for, and under it what is recommended where."""
    text = plan.recommendation.method
    name = next((method.short for method in (*methods, PLAIN) if method.text == text), text)
    drawn = " (thick)" if any(method.text == text for method in methods) else ""
    return (
        f"{plan.model}: {plan.numel:,} elements, {units.duration(plan.compute)} of computation\n"
        f"recommended: {name} at {plan.world} workers and {units.rate(plan.link.bandwidth)}{drawn}"
    )


def small_print(plan: Plan) -> str:
    """Where the numbers come from."""
    link = f"{units.duration(plan.link.latency)} per message"
    link = f"{link}, measured between {plan.link.world} ranks" if plan.link.world else f"{link}, as given"
    return f"All is predicted, time per step alone, from kernels timed on this machine and a model of the link: {link}."


def _label(plan: Plan, panels: Sequence[Any]) -> None:
    """Numbers and words at the axes."""
    ticker = need("matplotlib.ticker", "plan --png")
    workers, rates = panels
    workers.set_xlabel(f"workers, each with a link of {units.rate(plan.link.bandwidth)}")
    workers.set_xticks(WORKERS)
    workers.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    rates.set_xlabel(f"rate of each worker's link, with {plan.world} workers")
    rates.xaxis.set_major_formatter(ticker.FuncFormatter(_rate))
    workers.set_ylabel("predicted seconds per step")
    workers.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    for axes in panels:
        axes.tick_params(axis="x", labelsize=9)
    for axis in (workers.xaxis, workers.yaxis, rates.xaxis):
        axis.set_minor_formatter(ticker.NullFormatter())


def _rate(bits: float, _: int) -> str:
    return units.rate(bits)
