"""Sharded models and two levels: steps over links, steps on loopback, and the losses of compressed FSDP2.

    launch/netlab --hosts 2 --ranks-per-host 2 --rate 100mbit --rank0-raw -- \
        python benchmarks/sharded.py links --json sharded-links.json
    torchrun --standalone --nproc-per-node 4 benchmarks/sharded.py loopback --steps 30 --json sharded-loopback.json
    torchrun --standalone --nproc-per-node 4 benchmarks/sharded.py losses --json sharded-losses.json

`links` and `loopback` time whole training steps of a small model under FSDP2, HSDP and DDP, each without a reducer and
with some; all take turns step by step, so that noise meets all of them alike. A step takes as long as on its slowest
rank; bytes are those of a node's card, weights that FSDP gathers included. `losses` trains scikit-learn's digits (or
the quickstart's text) with FSDP2: the mean loss of all ranks over the last five steps, beside that of FSDP2 itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from common import write
from loop import loss_of
from ranks import Ranks, counted_per, lab, link, ranks
from sharding import attach, lay_out, wrap
from tasks import load
from torch import Tensor, nn
from torch.nn import functional

import compcomm as cc
from compcomm.report.metrics import timing

NODES = 2
WARM_UP = 3  # steps that are not counted: DDP and FSDP settle their buckets, memory is touched
LAST = 5  # steps at the end whose losses are averaged
CAST, ROTATED, FOUR = "Cast(bfloat16)", "Rotated(LloydMax(4))", "ErrorFeedback(QSGD(bits=4, rounding='nearest'))"
EIGHT = "QSGD(bits=8, rounding='nearest')"
Row = dict[str, Any]


class Variant(NamedTuple):
    """A host, what averages its gradients (None: itself), what codes the weights it gathers, and what codes gradients
    inside a node (None: nothing)."""

    host: str
    reducer: str | None = None
    weights: str | None = None
    inside: str | None = None


PLAIN = {"fsdp2": Variant("fsdp2"), "hsdp": Variant("hsdp"), "ddp": Variant("ddp"), "hierarchical": Variant("ddp")}
"""What each host's variants are compared with."""
FLAT, LEVELS = Variant("ddp", FOUR), Variant("hierarchical", FOUR)
LINKS = (
    PLAIN["fsdp2"], Variant("fsdp2", "Exact()"), Variant("fsdp2", CAST), Variant("fsdp2", ROTATED),
    Variant("fsdp2", ROTATED, EIGHT),
    PLAIN["hsdp"], Variant("hsdp", "Exact()"), Variant("hsdp", FOUR), Variant("hsdp", "PowerSGD(4)"),
    PLAIN["ddp"], FLAT, Variant("hierarchical", "Exact()"), LEVELS,
    Variant("hierarchical", FOUR, inside=CAST),
)  # fmt: skip
LOOPBACK = (
    PLAIN["fsdp2"], Variant("fsdp2", "Exact()"), PLAIN["hsdp"], Variant("hsdp", "Exact()"),
    PLAIN["ddp"], Variant("ddp", "Exact()"), Variant("hierarchical", "Exact()"),
)  # fmt: skip
LOSSES = (
    PLAIN["fsdp2"], Variant("fsdp2", FOUR), Variant("fsdp2", ROTATED), Variant("fsdp2", ROTATED, EIGHT),
    Variant("fsdp2", CAST),
)  # fmt: skip

BYTES = {
    LINKS[2]: 12.8e6, LINKS[3]: 10.4e6, LINKS[4]: 3.3e6, Variant("hsdp", FOUR): 0.83e6, FLAT: 1.66e6, LEVELS: 0.83e6,
}  # fmt: skip
"""Of a node per step, with two nodes of two ranks, to be met within `ABOUT`."""
ABOUT = 1.02
FASTER = (
    (LINKS[4], LINKS[0], 3.8), (Variant("hsdp", FOUR), PLAIN["hsdp"], 2.2), (LEVELS, PLAIN["ddp"], 3.8),
    (LEVELS, FLAT, 1.6),
)  # fmt: skip
"""The first is at least so many times as fast as the second, between two nodes at 100 Mbit/s."""
EXACT_TAKES = 1.1  # times as long as no reducer, at most, on loopback
GAPS = {LOSSES[1]: 0.01, LOSSES[2]: 0.005, LOSSES[3]: 0.01}
"""How far from the loss of FSDP2 itself at most."""


class Block(nn.Module):
    """The feed-forward half of a transformer's layer, with a width that no number of ranks divides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen, self.narrow = nn.Linear(width, 4 * width + 3), nn.Linear(4 * width + 3, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(functional.gelu(self.widen(self.norm(x))))


class Model(nn.Module):
    """Symbols to logits: 1.58 million parameters at width 196 with five blocks."""

    def __init__(self, width: int, blocks: int, symbols: int = 67) -> None:
        super().__init__()
        self.symbols = nn.Embedding(symbols, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.head = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.symbols(x)))


class Trainee:
    """A variant at work."""

    def __init__(self, variant: Variant, module: nn.Module, mesh: Any) -> None:
        self.variant = variant
        self.numel = sum(p.numel() for p in module.parameters())
        self.model = wrap(module, variant.host, mesh, variant.reducer is None)
        self.attachment = None
        if variant.reducer is not None:
            coded = {"weights": variant.weights, "inside": variant.inside}
            more = {name: cc.parse(text) for name, text in coded.items() if text is not None}
            self.attachment = attach(self.model, variant.host, mesh, cc.parse(variant.reducer), **more)

    def step(self, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step of training; its loss."""
        loss = loss_of(self.model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def row(self, here: Ranks) -> Row:
        """What it is, and what it keeps: the state of the rank that has most of it."""
        state = 0 if self.attachment is None else self.attachment.report().state_bytes
        host, reducer, weights, inside = self.variant
        return {
            "host": host,
            "reducer": "None" if reducer is None else reducer,
            "weights": weights,
            "inside": inside,
            "world_size": here.world,
            "parameters": self.numel,
            "state_bytes_per_parameter": here.slowest([state / self.numel])[0],
        }


def steps(variants: Sequence[Variant], here: Ranks, options: argparse.Namespace) -> list[Row]:
    """Seconds and bytes of steps, all variants in turns."""
    meshes = {host: lay_out(host, NODES) for host in dict.fromkeys(v.host for v in variants)}
    trainees: list[tuple[Trainee, torch.optim.Optimizer]] = []
    for variant in variants:
        torch.manual_seed(0)
        trainee = Trainee(variant, Model(options.width, options.blocks), meshes[variant.host])
        trainees.append((trainee, torch.optim.SGD(trainee.model.parameters(), 0.01)))
    draw = torch.Generator().manual_seed(here.rank)
    seconds: list[list[float]] = [[] for _ in variants]
    sent: list[list[float]] = [[] for _ in variants]
    for step in range(WARM_UP + options.steps):
        x = torch.randint(67, (128,), generator=draw)  # flat, as FSDP warns of outputs that are views
        for (trainee, optimizer), taken, bytes_ in zip(trainees, seconds, sent, strict=True):
            before = here.card_bytes()
            dist.barrier()
            start = time.perf_counter()
            trainee.step(x, (3 * x + 1) % 67, optimizer)
            spent = time.perf_counter() - start
            dist.barrier()  # until then a slower rank may still draw bytes from this card
            if step >= WARM_UP:
                taken.append(spent)
                bytes_.append(here.card_bytes() - before)
    rows: list[Row] = []
    for (trainee, _), taken, bytes_ in zip(trainees, seconds, sent, strict=True):
        found = timing(here.slowest(taken))
        row = trainee.row(here)
        row |= {"seconds": found.median, "seconds_spread": found.spread, "repeats": options.steps}
        rows.append(row | {"bytes_per_step": timing(here.mean(*bytes_)).median})
    index = {variant: row for variant, row in zip(variants, rows, strict=True)}
    for variant, row in index.items():
        row["speedup"] = index[PLAIN[variant.host]]["seconds"] / row["seconds"]
    return rows


def losses(here: Ranks, options: argparse.Namespace) -> tuple[list[Row], str]:
    """Losses of FSDP2's variants on a task, after each number of steps, and where the data came from."""
    task, mesh = load(options.task), lay_out("fsdp2", 1)
    rows: list[Row] = []
    for variant in LOSSES:
        trainee, curves = None, torch.empty(options.seeds, max(options.lengths))
        for seed in range(options.seeds):
            module = task.model(seed)
            trainee = Trainee(variant, module, mesh)
            optimizer, schedule = task.optimizer(module)
            for step in range(max(options.lengths)):
                curves[seed, step] = trainee.step(*task.batch(seed, step, here.rank), optimizer)
                schedule.step()
        assert trainee is not None
        row = trainee.row(here)
        for length in options.lengths:
            own = [fmean(here.mean(*curve[max(0, length - LAST) : length].tolist())) for curve in curves]
            first = rows[0]["losses"][str(length)] if rows else own
            row.setdefault("losses", {})[str(length)] = own
            row.setdefault("gap", {})[str(length)] = fmean(own) - fmean(first)
        rows.append(row)
        if here.first:
            print(f"{words(row):75} {gaps(row)}", flush=True)
    return rows, task.data


def gaps(row: Row) -> str:
    return "  ".join(f"{n} steps: {fmean(own):.4f} ({row['gap'][n]:+.4f})" for n, own in row["losses"].items())


def words(row: Row) -> str:
    """A row's variant."""
    parts = (f"{name} {row[name]}" for name in ("weights", "inside") if row[name])
    return ", ".join((row["host"], row["reducer"], *parts))


def judge(kind: str, rows: Sequence[Row]) -> list[Row]:
    """What is asked of the rows: {what, target, found, reached}."""
    index = {
        Variant(r["host"], None if r["reducer"] == "None" else r["reducer"], r["weights"], r["inside"]): r for r in rows
    }
    told: list[Row] = []

    def ask(what: str, target: float, found: float, reached: bool) -> None:
        told.append({"what": what, "target": target, "found": found, "reached": reached})

    if kind == "links":
        for variant, target in BYTES.items():
            found = index[variant]["bytes_per_step"]
            ask(f"{words(index[variant])}: bytes per step, at most", target, found, found <= ABOUT * target)
        for fast, slow, target in FASTER:
            found = index[slow]["seconds"] / index[fast]["seconds"]
            ask(f"{words(index[fast])}: times as fast as {words(index[slow])}", target, found, found >= target)
    elif kind == "loopback":
        for row in rows:
            if row["reducer"] != "None":
                found = 1 / row["speedup"]
                ask(f"{words(row)}: seconds against none, at most", EXACT_TAKES, found, found <= EXACT_TAKES)
    else:
        for variant, target in GAPS.items():
            for length, found in index[variant]["gap"].items():
                what = f"{words(index[variant])}: loss from that of none after {length} steps, at most"
                ask(what, target, abs(found), abs(found) <= target)
    return told


def main() -> None:
    options = arguments()
    with ranks() as here:
        if here.world != 4:
            raise ValueError(f"sharded.py: two nodes of two ranks are needed, and there are {here.world} ranks.")
        if options.kind == "losses":
            rows, data = losses(here, options)
        else:
            rows, data = steps(LINKS if options.kind == "links" else LOOPBACK, here, options), "random symbols"
        targets = judge(options.kind, rows)
        if here.first:
            for row in rows if options.kind != "losses" else ():
                print(
                    f"{words(row):75} {row['seconds'] * 1e3:8.1f} ms ({row['speedup']:.2f}x) "
                    f"{row['bytes_per_step'] / 1e6:7.3f} MB, state {row['state_bytes_per_parameter']:.2f}"
                )
            for t in targets:
                print(f"{t['what']:150} {t['target']:.5g}: {t['found']:.5g}, {'yes' if t['reached'] else 'NO'}")
            if options.json:
                write(
                    options.json, f"sharded-{options.kind}", rows, targets=targets, data=data, link=link(), lab=lab(),
                    counted=counted_per(),
                )  # fmt: skip
                print(f"written: {options.json}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("kind", choices=("links", "loopback", "losses"))
    parser.add_argument("--json", help="file for the rows")
    timed = parser.add_argument_group("links and loopback")
    timed.add_argument("--steps", type=int, default=8, help="measured steps of each (default: 8)")
    timed.add_argument("--width", type=int, default=196, help="of the model (default: 196)")
    timed.add_argument("--blocks", type=int, default=5, help="of the model (default: 5)")
    trained = parser.add_argument_group("losses")
    trained.add_argument("--task", default="digits", help="digits (default) or charlm")
    trained.add_argument("--lengths", type=int, nargs="+", default=[50, 300], help="after so many steps each")
    trained.add_argument("--seeds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
