"""Trains a small model with each reducer for the same time (or steps), and compares: loss, traffic, time to a loss.

    launch/netlab --hosts 2 --rate 100mbit --rank0-raw -- python benchmarks/train.py --task charlm --seconds 40 \
        --reducer "Exact()" --reducer "ErrorFeedback(QSGD(bits=4, rounding='nearest'))" --json train.json
    torchrun --nproc-per-node 2 benchmarks/train.py --task digits --steps 200 --reducer "Exact()" None
    torchrun --nproc-per-node 2 benchmarks/train.py --host fsdp2 --steps 200 --reducer None "Rotated(LloydMax(4))"

All reducers get the same seed, model, batches and learning rates; the first one sets the target, the loss that it ends
with. Each row says what bounds its steps: compute, kernels or the wire (`bounds.py`). `None` is DDP without a hook, or
another `--host` (`sharding.py`) without a reducer. On loopback `--link 100mbit` adds what a cost model says of such a
link: the measured step, and the payload at that rate after it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from bounds import bound, compute_seconds, why
from common import write
from loop import Budget, train
from ranks import Ranks, counted_per, lab, link, ranks
from sharding import HOSTS, lay_out
from tasks import load

import compcomm as cc
from compcomm.core.optional import need
from compcomm.report import plots, tables
from compcomm.report.metrics import at, time_to_loss

Row = dict[str, Any]


def main() -> None:
    options = arguments()
    with ranks() as here:
        check(options, here)
        reducers = [None if text in ("None", "ddp") else cc.parse(text) for text in options.reducer]
        task, budget = load(options.task), Budget(options.seconds, options.steps)
        rows: list[Row] = []
        if here.first:
            print(f"{task.name} on {task.data}", f"{here.world} workers, {link()}", sep="\n", flush=True)
        compute = compute_seconds(task, here, seed=options.seed)
        with Bar(here, len(reducers)) as bar:
            for reducer in reducers:
                bar.next("None" if reducer is None else repr(reducer))
                rows.append(train(task, reducer, budget, here, bar.show, seed=options.seed, host=options.host))
                bar.done(rows[-1])
        for row in rows:
            row["compute_seconds"] = compute
            row["link_seconds"] = 8 * row["bytes_per_step"] / note["bits_per_second"] if (note := lab()) else None
            row["bound"] = bound(row)
        compare(rows)
        if options.link and here.world > 1:
            predict(rows, options.link, options.seconds)
        if here.first:
            report(rows, options, task.data)


def check(options: argparse.Namespace, here: Ranks) -> None:
    """What only DDP can do, and what the host needs, before anything trains.

    Raises:
        ValueError: the host cannot do what is asked.
    """
    if options.host != "ddp" and "ddp" in options.reducer:
        raise ValueError(f"--reducer ddp --host {options.host}: DDP is a host. Write None for no reducer.")
    if options.host != "ddp" and options.link:
        raise ValueError(f"--link {options.link} --host {options.host}: the cost model knows DDP alone. Leave it out.")
    lay_out(options.host, here.world // here.local)


def compare(rows: Sequence[Row]) -> None:
    """From which second on each run stays at the loss that the first one ends with, or below, and how much sooner."""
    target = rows[0]["loss"]
    for row in rows:
        row["target"] = target
        seconds, steps, loss = ([p[i] for p in row["curve"]] for i in (0, 2, 3))
        row["seconds_to_target"] = time_to_loss(seconds, loss, target)
        row["steps_to_target"] = time_to_loss(steps, loss, target)
        row["speedup"] = ratio(rows[0]["seconds_to_target"], row["seconds_to_target"])


def predict(rows: Sequence[Row], name: str, seconds: float | None) -> None:
    """What runs measured here would take on a link of that rate: step by step, the time measured + 8 payload / rate.

    No overlap is assumed. The target is then the loss that the first run has when its predicted time is up, and what
    a run did after its own predicted time does not count.
    """
    bits = float(name.removesuffix("bit")[:-1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[name.removesuffix("bit")[-1]]
    paces = [row["seconds_per_step"] + 8 * row["payload_bytes_per_step"] / bits for row in rows]
    curves = [([p[2] for p in row["curve"]], [p[3] for p in row["curve"]]) for row in rows]
    last = rows[0]["steps"] if seconds is None else seconds / paces[0]
    target = at(*curves[0], last)
    first = None
    for row, pace, (steps, loss) in zip(rows, paces, curves, strict=True):
        reached = time_to_loss(*until(steps, loss, row["steps"] if seconds is None else seconds / pace), target)
        needed = None if reached is None else reached * pace
        first = first or needed
        row["predicted"] = {
            "link": name,
            "target": target,
            "seconds_per_step": pace,
            "seconds_to_target": needed,
            "speedup": ratio(first, needed),
            "steps_to_target": reached,
            "bound": bound({**row, "link_seconds": pace - row["seconds_per_step"]}),
            "link_seconds": pace - row["seconds_per_step"],
        }


def until(x: Sequence[float], y: Sequence[float], end: float) -> tuple[list[float], list[float]]:
    """The curve up to ``x = end``, closed by a point there if it goes on."""
    if end >= x[-1]:
        return list(x), list(y)
    kept = sum(a < end for a in x)
    return [*x[:kept], end], [*y[:kept], at(x, y, end)]


def ratio(first: float | None, own: float | None) -> float | None:
    return first / own if first and own else None


def report(rows: list[Row], options: argparse.Namespace, data: str) -> None:
    """The table, and the files that were asked for."""
    wire = "collectives in flight" if lab() is None else "the bytes at the link's rate"
    title = f"{options.task}: validation loss of {rows[0]['world_size']} workers, {link()}"
    if options.host != "ddp":
        title += f", {options.host}"
    note = (
        f"bytes/step: what the network card counts, {counted_per()}. s to target: the training time from which the "
        f"loss stays at or below {rows[0]['target']:.4f}, with which {rows[0]['reducer']} ends; a dip before does not "
        f"count. -: not reached. bound by: the longest of compute (a step without communication takes "
        f"{rows[0]['compute_seconds'] * 1e3:.3g} ms), kernels (encoding and decoding) and wire ({wire})."
    )
    console = need("rich.console", "train.py").Console(width=None if sys.stdout.isatty() else 160)
    console.print(tables.training(rows, title, note))
    if reason := why([{**row, **row.get("predicted", {})} for row in rows]):
        console.print(reason, highlight=False)
    if options.json:
        write(options.json, "train", rows, task=options.task, data=data, link=link(), lab=lab(), seed=options.seed)
        print(f"written: {options.json}")
    if options.plot:
        print(f"written: {plots.training(rows, options.plot, title)}", flush=True)


class Bar:
    """Progress on rank 0: a bar on a terminal, one line per reducer elsewhere. Its seconds are those of training."""

    def __init__(self, here: Ranks, reducers: int) -> None:
        self.first, self.reducers, self.begun, self.bar, self.task = here.first, reducers, 0, None, None
        if here.first and sys.stdout.isatty():
            rich = need("rich.progress", "train.py")
            self.bar = rich.Progress(
                rich.TextColumn("{task.description}"),
                rich.BarColumn(),
                rich.TaskProgressColumn(),
                rich.TextColumn("{task.fields[loss]:>10}"),
                rich.TextColumn("{task.fields[seconds]:5.1f} s"),  # validation apart: so it ends at --seconds
                refresh_per_second=2,  # drawing takes time from the rank that is measured
            )

    def __enter__(self) -> Bar:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def next(self, name: str) -> None:
        self.begun += 1
        if self.bar:
            label = f"{self.begun} of {self.reducers}  {plots.short(name)}"
            self.task = self.bar.add_task(label, total=1.0, loss="", seconds=0.0)

    def show(self, share: float, seconds: float, loss: float) -> None:
        if self.bar:
            self.bar.update(self.task, completed=share, loss=f"loss {loss:.3f}", seconds=seconds)

    def done(self, row: Row) -> None:
        if self.bar:
            self.show(1.0, row["seconds"], row["loss"])
        elif self.first:
            print(
                f"{row['reducer']}: {row['steps']} steps in {row['seconds']:.1f} s, loss {row['loss']:.4f}", flush=True
            )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--task", default="charlm", help="charlm or digits")
    parser.add_argument(
        "--reducer", nargs="+", action="extend", required=True, help="as in Python, one or more; None: no hook"
    )
    parser.add_argument("--host", default="ddp", choices=HOSTS, help="what averages gradients (default: ddp)")
    parser.add_argument("--seconds", type=float, help="training time of each reducer")
    parser.add_argument("--steps", type=int, help="instead: training steps of each reducer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file for the rows")
    parser.add_argument("--plot", help="PNG file for the curves")
    parser.add_argument("--link", help="add the cost model's times for a link of this rate, as in 100mbit")
    return parser.parse_args()


if __name__ == "__main__":
    main()
