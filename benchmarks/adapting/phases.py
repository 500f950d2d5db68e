"""The seconds of a controller's period, part by part, on recorded gradients in the simulator."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import record
import torch

import compcomm as cc

from .gains import MODELS, SMALL

Row = dict[str, Any]
PARTS = ("gather", "measure", "exchange", "decide", "adopt")
SPENT: dict[str, list[float]] = defaultdict(list)
"""Seconds of each call, by part."""


class Timed(cc.LGreCo):
    """L-GreCo with a clock. ``every == window``: nothing runs beside the steps, so parts do not disturb each other."""

    def _gather(self, *arguments: Any) -> None:
        begin = time.perf_counter()
        super()._gather(*arguments)
        SPENT["gather"].append(time.perf_counter() - begin)

    def _measured(self, *arguments: Any) -> Any:
        begin = time.perf_counter()
        found = super()._measured(*arguments)
        SPENT["measure"].append(time.perf_counter() - begin)
        return found

    def _decided(self, *arguments: Any) -> Any:
        begin = time.perf_counter()
        found = super()._decided(*arguments)
        SPENT["decide"].append(time.perf_counter() - begin)
        return found

    def _exchange(self, *arguments: Any) -> Any:
        yield from _clocked(super()._exchange(*arguments), "exchange", "measure")

    def _adopt(self, *arguments: Any) -> Any:
        yield from _clocked(super()._adopt(*arguments), "adopt", "decide")


def _clocked(flow: Any, part: str, within: str) -> Any:
    """The time between its messages, less that of the part within."""
    total, inner, answer = 0.0, len(SPENT[within]), None
    while True:
        begin = time.perf_counter()
        try:
            message = flow.send(answer)
        except StopIteration:
            SPENT[part].append(total + time.perf_counter() - begin - sum(SPENT[within][inner:]))
            return
        total += time.perf_counter() - begin
        answer = yield message


def run(
    models: Sequence[str] = MODELS, folder: Path = record.FOLDER, quick: bool = False, periods: int = 5, window: int = 4
) -> list[Row]:
    """A row per model: the median seconds of each part; the first period, which allocates, apart."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for model in models:
        named = record.load(model, folder, quick=quick)
        compressor = cc.parse("TopK(ratio=0.01{})".format(SMALL if model == "digits" else ""))
        timed = Timed(compressor, every=window, window=window)
        simulator = cc.Simulator(cc.ErrorFeedback(timed), 1)
        SPENT.clear()
        for step in range((1 + periods) * window):
            simulator.mean([named])
            if step == window - 1:
                SPENT.clear()
        layout = cc.Layout.of((n, t.shape) for n, t in named.items())
        layers = sum(not timed.exact(s) for s in layout.segments)
        row: Row = {"model": model, "numel": layout.numel, "layers": layers, "candidates": len(timed.settings)}
        row |= {f"{part}_seconds": median(SPENT[part]) for part in PARTS}
        row["message_bytes"] = 8 * (layers * (1 + len(timed.settings)) + 1) + 8 * (layers + 1)
        rows.append(row)
        parts = ", ".join(f"{part} {row[f'{part}_seconds'] * 1e3:.2f} ms" for part in PARTS)
        print(f"{model:12} {parts}", flush=True)
    return rows
