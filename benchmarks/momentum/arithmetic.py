"""What an optimizer computes itself: one process, one thread, no process group, so that nothing is sent or coded."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from common import write
from exchange import find
from replay import Named
from torch import nn

import compcomm as cc
from compcomm.core.optional import need
from compcomm.report import tables
from compcomm.report.metrics import timing

Row = dict[str, Any]
Call = Callable[[], object]
FAR = 1 << 30
WARM_UP = 3  # calls that are not counted: memory is touched


def contestants(parameters: list[nn.Parameter]) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Names, and what makes the call that is timed, its state in the phase that is meant."""

    def torchs(kind: Any, **options: bool) -> Callable[[], Call]:
        return lambda: kind(parameters, 1e-4, **options).step

    def warm(kind: Any) -> Callable[[], Call]:
        return lambda: kind(parameters, 1e-4, freeze=FAR).step

    def after(kind: Any, **options: int) -> Callable[[], Call]:
        def make() -> Call:
            optimizer = kind(parameters, 1e-4, freeze=1, **options)
            optimizer.step()
            assert optimizer.compressed
            return optimizer.step

        return make

    def memcpy() -> Call:
        """As many bytes as the gradients have."""
        source = torch.zeros(sum(p.numel() for p in parameters))
        target = torch.zeros_like(source)
        return lambda: target.copy_(source)

    adam, lamb, rare = cc.optim.OneBitAdam, cc.optim.OneBitLamb, cc.optim.ZeroOneAdam
    yield "memcpy", memcpy
    yield "AdamW(foreach=True)", torchs(torch.optim.AdamW, foreach=True)
    yield "OneBitAdam, warm-up", warm(adam)
    yield "OneBitAdam, compressed phase", after(adam)
    yield "ZeroOneAdam, refresh", warm(rare)
    # The interval doubles with every step up to 2^30: the steps that are timed are local ones.
    yield "ZeroOneAdam, local step", after(rare, local_step_scaler=1, local_step_clipper=FAR)
    yield "OneBitLamb, warm-up", warm(lamb)
    yield "OneBitLamb, compressed phase", after(lamb)


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    rows: list[Row] = []
    for model in options.model:
        rows += compare(model, find(model), options.repeats)
    title = f"an optimizer's own arithmetic, one thread, {options.repeats} pairs each"
    note = (
        "each call in turn with Adam(fused=True): ms are medians, the ratio is that of medians of the same pairs. "
        "No process group: coding, decoding and residuals are the exchange's, and not in it."
    )
    columns = ["call", "ms", "half of all", "Adam(fused), ms", "times Adam(fused)"]
    lines = [
        [
            f"{row['model']}: {row['call']}",
            tables.digits(row["seconds"], 1e3),
            f"{row['seconds_spread'][0] * 1e3:.1f} to {row['seconds_spread'][1] * 1e3:.1f}",
            tables.digits(row["adam_seconds"], 1e3),
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    console = need("rich.console", "optimizers.py").Console(width=None if sys.stdout.isatty() else 160)
    console.print(tables.table(title, columns, lines, note))
    if options.json:
        write(options.json, "optimizers-arithmetic", rows, repeats=options.repeats)
        print(f"written: {options.json}")


def compare(model: str, shapes: Sequence[Named], repeats: int) -> list[Row]:
    """Every call in turn with ``Adam(fused=True)``'s, so that a busy machine slows both. One at a time beside it: each
    has state of its own, of up to five times the parameters."""
    draw = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=draw)) for _, shape in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=draw) * 1e-3
    adam = torch.optim.Adam(parameters, 1e-4, fused=True).step
    rows: list[Row] = []
    for name, make in contestants(parameters):
        call = make()
        pairs = [(timed(adam), timed(call)) for _ in range(WARM_UP + repeats)][WARM_UP:]
        base, own = median(a for a, _ in pairs), timing([b for _, b in pairs])
        rows.append(
            {
                "model": model,
                "numel": sum(p.numel() for p in parameters),
                "call": name,
                "seconds": own.median,
                "seconds_spread": own.spread,
                "adam_seconds": base,
                "ratio": own.median / base,
            }
        )
        print(f"{model}, {name}: {own.median * 1e3:.1f} ms, Adam(fused=True) {base * 1e3:.1f} ms", flush=True)
        del call
        gc.collect()
    return rows


def timed(call: Call) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
