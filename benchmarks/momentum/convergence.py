"""Convergence: every method on one task over several seeds; losses beside its yardstick's, bytes beside fp16's."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from math import isfinite
from statistics import mean, stdev
from typing import Any

import torch
from cells import spread
from common import write
from ranks import Ranks, lab, link, ranks
from tasks import load

import compcomm as cc
from compcomm.core.optional import need
from compcomm.report import tables

from . import pictures
from .methods import HALF, chosen, methods, setting
from .training import fit

Row = dict[str, Any]


def main(options: argparse.Namespace) -> None:
    with ranks() as here:
        if here.world == 1:
            raise ValueError("convergence: one rank sends nothing. Start it by torchrun or launch/netlab with several.")
        task, shared = load(options.task), setting(options.task, options.lr, options.lamb_lr)
        factor = task.optimizer(torch.nn.Linear(1, 1))[1].lr_lambdas[0]
        every = methods(shared, options.steps, factor, cc.parse(options.compressor), options.local_steps)
        if here.first:
            print(f"{task.name} on {task.data}", f"{here.world} workers, {link()}", sep="\n", flush=True)
        rows: list[Row] = earlier(options, shared, here) if options.onto else []
        for method in chosen(every, options.method):
            for seed in range(options.seeds):
                rows.append(fit(task, method, options.steps, seed, here))
                say(rows[-1], here)
        compare(rows)
        summary = summarise(rows)
        if here.first:
            report(rows, summary, options, task.data, vars(shared))


def earlier(options: argparse.Namespace, shared: Any, here: Ranks) -> list[Row]:
    """The rows of a run of the same kind, to which others are added.

    Raises:
        ValueError: it is of another kind.
    """
    found = json.loads(options.onto.read_text())
    mine = {
        "task": options.task, "steps": options.steps, "seeds": options.seeds, "compressor": options.compressor,
        "local_steps": options.local_steps, "lab": lab(), "setting": json.loads(json.dumps(vars(shared))),
    }  # fmt: skip
    for name, value in mine.items():
        if found.get(name) != value:
            raise ValueError(f"--onto {options.onto}: {name} is {found.get(name)!r} there and {value!r} here.")
    if any(row["world_size"] != here.world for row in found["rows"]):
        raise ValueError(f"--onto {options.onto}: it had another number of workers.")
    return [{"commit": found["commit"], **row} for row in found["rows"]]


def say(row: Row, here: Ranks) -> None:
    if here.first:
        print(
            f"{row['method']}, seed {row['seed']}: loss {row['loss']:.4f}, {row['seconds']:.1f} s, "
            + ", ".join(f"{p['name']} {tables.number(p['bytes_per_step'], ' B')}" for p in row["phases"]),
            flush=True,
        )


def compare(rows: Sequence[Row]) -> None:
    """Adds each run's bytes against those of the fp16 hook with the same seed: of the whole run, and of its last
    phase. None where the hook did not run."""
    half = {row["seed"]: row["bytes_per_step"] for row in rows if row["method"] == HALF}
    for row in rows:
        base = half.get(row["seed"])
        row["ratio"] = base / row["bytes_per_step"] if base else None
        row["last_ratio"] = base / row["phases"][-1]["bytes_per_step"] if base else None


def summarise(rows: Sequence[Row]) -> list[Row]:
    """One row per method: means and standard deviations over the seeds, and the comparison with its yardstick."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["method"], []).append(row)
    found: dict[str, Row] = {}
    for name, runs in by_name.items():
        phases = [p["name"] for p in runs[0]["phases"]]
        found[name] = {
            "method": name,
            "optimizer": runs[0]["optimizer"],
            "beside": runs[0]["beside"],
            "seeds": len(runs),
            **_moments("loss", runs),
            **_moments("area", runs),
            **(_moments("accuracy", runs) if runs[0]["accuracy"] is not None else {}),
            **{key: mean(r[key] for r in runs) for key in ("bytes_per_step", "seconds")},
            **{key: mean(r[key] for r in runs) if runs[0][key] else None for key in ("ratio", "last_ratio")},
            "interval": runs[0]["phases"][-1]["interval"],
            "phases": [
                {"name": phase} | {
                    key: mean(r["phases"][i][key] for r in runs)
                    for key in ("start", "stop", "seconds_per_step", "bytes_per_step", "payload_bytes_per_step")
                }
                for i, phase in enumerate(phases)
            ],
        }  # fmt: skip
    for row in found.values():
        other = found.get(row["beside"])
        for key in ("loss", "area"):
            row |= beside(key, row, other)
    return list(found.values())


def _moments(key: str, runs: Sequence[Row]) -> Row:
    values = [run[key] for run in runs]
    if not all(isfinite(v) for v in values):
        return {key: None, f"{key}_std": None}
    return {key: mean(values), f"{key}_std": stdev(values) if len(values) > 1 else None}


def beside(key: str, row: Row, other: Row | None) -> Row:
    """The difference of the means to the yardstick's, and what it is against the yardstick's noise, the standard
    deviation of its own runs over the seeds: "within", "below" or "above" it. None: this is the yardstick, or it was
    not run, or only once."""
    if other is None or other is row or other[key] is None:
        return {f"{key}_difference": None, f"{key}_verdict": None}
    if row[key] is None:
        return {f"{key}_difference": None, f"{key}_verdict": "diverged"}
    difference = row[key] - other[key]
    noise, verdict = other[f"{key}_std"], None
    if noise is not None:
        verdict = "within" if abs(difference) <= noise else "above" if difference > 0 else "below"
    return {f"{key}_difference": difference, f"{key}_verdict": verdict}


def report(rows: list[Row], summary: list[Row], options: argparse.Namespace, data: str, shared: Row) -> None:
    """The table, and the files that were asked for."""
    title = f"{options.task}: {options.steps} steps, {options.seeds} seeds, {rows[0]['world_size']} workers, {link()}"
    note = (
        "fewer: bytes of the network card against those of Adam with the fp16 hook, of the whole run and of the last "
        "phase. noise: whether the difference of the means to the yardstick (Adam, or LAMB for 1-bit LAMB) is within "
        "the standard deviation of the yardstick's own runs."
    )
    console = need("rich.console", "optimizers.py").Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(summary, title, note))
    if options.json:
        write(
            options.json, "optimizers-convergence", rows, task=options.task, data=data, link=link(), lab=lab(),
            steps=options.steps, seeds=options.seeds, setting=shared, compressor=options.compressor,
            local_steps=options.local_steps, summary=summary,
        )  # fmt: skip
        print(f"written: {options.json}")
    if options.plot:
        pictures.curves(rows, options.plot, title)
        print(f"written: {options.plot}", flush=True)


def table(summary: Sequence[Row], title: str, note: str) -> Any:
    columns = [
        "method", "loss", "to yardstick", "noise", "area", "to yardstick", "noise", "accuracy", "bytes\n/step",
        "fewer", "last phase\nfewer", "s",
    ]  # fmt: skip
    lines = [
        [
            row["method"],
            spread(row, "loss"),
            _signed(row["loss_difference"]),
            row["loss_verdict"] or "-",
            spread(row, "area"),
            _signed(row["area_difference"]),
            row["area_verdict"] or "-",
            spread(row, "accuracy", 3),
            tables.number(row["bytes_per_step"], " B"),
            tables.times(row["ratio"]),
            tables.times(row["last_ratio"]),
            tables.digits(row["seconds"]),
        ]
        for row in summary
    ]
    return tables.table(title, columns, lines, note)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
