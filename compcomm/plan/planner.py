"""A plan: for a model, a number of workers and a link, the predicted step of every method, and which one to use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from torch import nn

from ..core.compressor import Compressor
from ..core.layout import Layout
from ..core.reducer import Reducer
from . import units
from .buckets import cut
from .hosts import DDP, Host, Setting
from .kernels import Kernels, calibrate
from .link import Link
from .methods import Method, method
from .models import Model, find
from .recommend import choose
from .result import Plan, Row
from .step import FORWARD, Prediction

_SLOWEST, _FASTEST, _POINTS = 1e4, 1e13, 37
"""Bits per second between which break-evens are looked for, first at so many rates: four for each factor of ten."""


def plan(
    model: str | nn.Module | Iterable[tuple[str, Iterable[int]]] | Model,
    workers: int,
    link: Link | None = None,
    *,
    bandwidth: str | float | None = None,
    latency: str | float = 0.0,
    compute: str | float,
    methods: Sequence[str | Reducer | Compressor | Method] | None = None,
    kernels: Mapping[str, Kernels] | None = None,
    host: Host | None = None,
) -> Plan:
    """Predicts a training step with every method, and recommends one.

    Args:
        model: a known name, a file, a module, or (name, shape) pairs (see ``models.find``).
        workers: how many ranks, 2 or more.
        link: between them; or give ``bandwidth`` ("1gbit", "125 MB/s", or bits per second) and ``latency`` ("50us").
        compute: seconds of forward and backward pass of one worker.
        methods: those to compare; None: the host as it is and the reducers that suit it. The order counts: of two that
            are equally fast, the first is recommended.
        kernels: seconds of coding, by method text; what is missing is measured on this machine.
        host: what holds the model: None is DDP, of which every worker has a link; else see ``compcomm.plan.hosts``.

    Raises:
        ValueError: an argument is none of these; a method that does not fit the model.
    """
    world = check_workers(workers)
    if (link is None) == (bandwidth is None):
        raise ValueError("plan: give a link, or a bandwidth (and a latency), one of the two.")
    line = link if link is not None else Link.of(bandwidth or 0.0, latency)
    took, found = units.seconds(compute), find(model)
    holds = host or DDP()
    holds.check(world)
    chosen = holds.methods() if methods is None else tuple(m if isinstance(m, Method) else method(m) for m in methods)
    if not chosen:
        raise ValueError(f"plan(methods={methods!r}): nothing to compare. Give reducers, or None for those it knows.")
    buckets = cut(found.shapes)
    measured = dict(kernels or {})
    resolved = [holds.resolved(m, world) for m in chosen]  # what has no form is refused before anything is measured
    for m, reducer in zip(chosen, resolved, strict=True):
        if m.text not in measured:
            measured[m.text] = calibrate(reducer, holds.seen(buckets), holds.world(world), rows=holds.rows)
    return made(found, buckets, world, line, took, chosen, measured, host=holds)


def made(
    model: Model,
    buckets: tuple[Layout, ...],
    world: int,
    link: Link,
    compute: float,
    methods: Sequence[Method],
    kernels: Mapping[str, Kernels],
    forward: float = FORWARD,
    host: Host | None = None,
) -> Plan:
    """A plan from what is known already: nothing is measured. ``forward``: the forward pass's part of ``compute``."""
    holds = host or DDP()

    def at(m: Method, line: Link, holds: Host = holds) -> Prediction:
        setting = Setting(world, line, kernels.get(m.text, Kernels()), compute, forward)
        return replace(holds.predict(m, buckets, setting), method=m.text)

    predictions = {m.text: at(m, link) for m in methods}
    fp32, bf16 = ([predictions[t].seconds for t in texts if t in predictions] for texts in holds.baselines)
    baselines = [m for m in methods if m.text in (*holds.baselines.fp32, *holds.baselines.bf16)]

    @lru_cache(maxsize=4096)
    def plain(b: float) -> float:
        return min(at(x, link.at(b)).seconds for x in baselines)

    def row(m: Method) -> Row:
        p = predictions[m.text]
        pays = None
        if m not in baselines and baselines:
            pays = breakeven(lambda b: at(m, link.at(b)).seconds, plain)
        return Row(m.short, p, pays, *(found[0] / p.seconds if found else None for found in (fp32, bf16)))

    rows = tuple(map(row, methods))
    sizes = tuple(layout.numel for layout in buckets)
    recommendation = choose(
        [r.prediction for r in rows], arguments=holds.arguments, plain=holds.plain, baselines=holds.baselines,
        comment=holds.comment,
    )  # fmt: skip
    hint = ""
    if holds.better is not None:
        host, does = holds.better
        best = min(methods, key=lambda m: at(m, link, host).seconds)
        hint = f"{does}: {best.short} would take {1e3 * at(best, link, host).seconds:.4g} ms"
    return Plan(model.name, model.numel, world, link, compute, sizes, rows, recommendation, dict(kernels), holds, hint)


def breakeven(ours: Callable[[float], float], theirs: Callable[[float], float]) -> tuple[tuple[float, float], ...]:
    """The rates in bits per second between which ``ours(rate)`` is shorter than ``theirs(rate)``, ascending; 0 and
    infinity where it still is at 10 kbit/s and at 10 Tbit/s. Equal steps, both hidden by the computation, are no gain.

    >>> breakeven(lambda b: 1.0 + 1e9 / b, lambda b: 5e9 / b)
    ((0.0, 4000000000.0),)
    """

    def wins(rate: float) -> bool:
        return ours(rate) < theirs(rate)

    def edge(low: float, high: float) -> float:
        before = wins(low)
        for _ in range(32):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if wins(middle) is before else (low, middle)
        return float(f"{low:.6g}")

    rates = [_SLOWEST * (_FASTEST / _SLOWEST) ** (i / (_POINTS - 1)) for i in range(_POINTS)]
    won = [wins(rate) for rate in rates]
    edges = [edge(a, b) for a, b, x, y in zip(rates, rates[1:], won, won[1:], strict=False) if x is not y]
    bounds = [*([0.0] if won[0] else []), *edges, *([float("inf")] if won[-1] else [])]
    return tuple(zip(bounds[::2], bounds[1::2], strict=True))


def check_workers(given: object) -> int:
    """Raises ValueError where there is nothing to plan."""
    if isinstance(given, bool) or not isinstance(given, int) or not 2 <= given <= 65536:
        raise ValueError(f"plan(workers={given!r}): an integer from 2 to 65536; one worker has nothing to send.")
    return given
