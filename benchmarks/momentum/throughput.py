"""Seconds per step over a link: a real DDP model of a known model's shapes, each optimizer with its own exchange."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from common import write
from contestants import ring
from exchange import find
from ranks import Ranks, lab, link, ranks
from replay import Named
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

import compcomm as cc
from compcomm.core.optional import need
from compcomm.report import tables
from compcomm.report.metrics import timing

from .methods import BF16

Row = dict[str, Any]
YARDSTICK = "fp16, Adam"
RATE = 1e-4


class Shapes(nn.Module):
    """Parameters of given names and shapes; element (i, j, ...) of a gradient is noise[start + i + j'], j' counting the
    elements behind the first dimension. ``start`` differs from step to step and the noise from rank to rank: gradients
    that differ, for one pass over memory."""

    def __init__(self, shapes: Sequence[Named], rank: int) -> None:
        super().__init__()
        for name, shape in shapes:  # a module allows no dot in the name of a parameter of its own
            self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.full(shape, 0.01)))
        longest = max(p.shape[0] + p.numel() // p.shape[0] for p in self.parameters())
        draw = torch.Generator().manual_seed(rank)
        self.noise, self.starts, self.step = torch.randn(longest + 4099, generator=draw) * 1e-3, 4099, 0

    def forward(self) -> Tensor:
        self.step += 1
        start = 1009 * self.step % self.starts
        return torch.stack([_Noise.apply(p, self.noise[start:]) for p in self.parameters()]).sum()


class _Noise(torch.autograd.Function):
    """0, whose gradient is noise."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, noise: Tensor) -> Tensor:
        ctx.noise, ctx.shape = noise, p.shape
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        rows, *rest = ctx.shape
        size = 1
        for n in rest:
            size *= n
        return ctx.noise.as_strided((rows, size), (1, 1)).view(ctx.shape), None


class Ready(NamedTuple):
    """An optimizer with its DDP model, ready to step."""

    optimizer: torch.optim.Optimizer
    close: Callable[[], None]


@dataclass(frozen=True)
class Contestant:
    """``make(model)`` registers what averages gradients. ``settle``: steps before those that are measured;
    ``interval``: steps from one exchange to the next. ``payload``: bytes that a rank hands to the collectives in an
    interval."""

    name: str
    text: str
    make: Callable[[DistributedDataParallel], Ready]
    payload: float
    settle: int
    interval: int = 1


def contestants(shapes: Sequence[Named], here: Ranks, local: int, settle: int) -> list[Contestant]:
    """The yardstick is the second one; the first exchanges nothing, and is the floor under all of them."""
    numel = cc.Layout.of(shapes).numel
    world = here.world

    def sent(reducer: cc.Reducer | cc.Compressor) -> float:
        return float(cc.cost(reducer, cc.Layout.of(shapes), world, here.rank).sent)

    def adam(hook: Callable[..., Any] | None) -> Callable[[DistributedDataParallel], Ready]:
        def make(model: DistributedDataParallel) -> Ready:
            if hook is not None:
                model.register_comm_hook(None, hook)
            return Ready(torch.optim.Adam(model.parameters(), RATE, fused=True), lambda: None)

        return make

    def attached(model: DistributedDataParallel) -> Ready:
        attachment = cc.attach(model, BF16)
        return Ready(torch.optim.Adam(model.parameters(), RATE, fused=True), attachment.detach)

    def ours(kind: Any, **more: Any) -> Callable[[DistributedDataParallel], Ready]:
        def make(model: DistributedDataParallel) -> Ready:
            optimizer = kind(model, RATE, freeze=1, warmup=BF16, **more)
            return Ready(optimizer, optimizer.detach)

        return make

    fp16 = adam(default_hooks.fp16_compress_hook)
    signs = sent(cc.ErrorFeedback(cc.SignScale()))
    grown = 1 + local.bit_length()  # after the freeze, at step 1, the interval doubles in every step
    return [
        Contestant("no exchange", "Adam(fused=True), gradients stay local", adam(nothing), 0.0, settle),
        Contestant(YARDSTICK, "Adam(fused=True)", fp16, ring(2 * numel, world), settle),
        Contestant("bf16, Adam", f"Adam(fused=True), attach({BF16!r})", attached, sent(BF16), settle),
        Contestant("fp32, Adam", "Adam(fused=True), DDP's all-reduce", adam(None), ring(4 * numel, world), settle),
        Contestant("1-bit Adam", "OneBitAdam(freeze=1)", ours(cc.optim.OneBitAdam), signs, 2),
        Contestant(
            "0/1 Adam", f"ZeroOneAdam(freeze=1, local_step_scaler=1, local_step_clipper={local})",
            ours(cc.optim.ZeroOneAdam, local_step_scaler=1, local_step_clipper=local), signs, 1 + grown, local,
        ),
    ]  # fmt: skip


def nothing(state, bucket):  # no annotations: DDP reads them, and takes no strings
    """DDP's hook that averages nothing."""
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def main(options: argparse.Namespace) -> None:
    shapes = find(options.model)
    with ranks() as here:
        every = contestants(shapes, here, options.local_steps, options.settle)
        if strange := set(options.contestant or ()) - {c.name for c in every}:
            raise ValueError(f"--contestant {strange.pop()}: there are {', '.join(c.name for c in every)}.")
        rows = [
            measure(c, shapes, here, options)
            for c in every
            if not options.contestant or c.name in options.contestant
        ]  # fmt: skip
        compare(rows, options.wait)
        if here.first:
            report(rows, options, cc.Layout.of(shapes).numel)


def measure(contestant: Contestant, shapes: Sequence[Named], here: Ranks, options: argparse.Namespace) -> Row:
    """One row: intervals are measured whole, and what is said is per step."""
    seconds, sent = run(contestant, shapes, here, options)
    gc.collect()  # the next one needs the memory
    found = timing(here.slowest(seconds))
    row = {
        "contestant": contestant.name,
        "optimizer": contestant.text,
        "world_size": here.world,
        "interval": contestant.interval,
        "seconds": found.median,
        "seconds_spread": found.spread,
        "seconds_without_wait": found.median - options.wait,
        "repeats": len(seconds),
        "bytes_sent": timing(here.mean(*sent)).median,
        "payload_bytes": here.mean(contestant.payload)[0] / contestant.interval,
    }
    if here.first:
        bytes_sent = tables.number(row["bytes_sent"], " B")
        print(f"{contestant.name}: {row['seconds']:.3f} s, {bytes_sent} per step", flush=True)
    return row


def run(
    contestant: Contestant, shapes: Sequence[Named], here: Ranks, options: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Seconds and bytes on the card, per step of each interval, on this rank."""
    model = DistributedDataParallel(Shapes(shapes, here.rank), gradient_as_bucket_view=True)
    optimizer, close = contestant.make(model)

    def step() -> None:
        optimizer.zero_grad()
        loss = model()
        time.sleep(options.wait)
        loss.backward()
        optimizer.step()

    for _ in range(contestant.settle):
        step()
    seconds: list[float] = []
    sent: list[float] = []
    begin, more = time.monotonic(), 1
    while more:
        dist.barrier()
        before, start = here.card_bytes(), time.perf_counter()
        for _ in range(contestant.interval):
            step()
        seconds.append((time.perf_counter() - start) / contestant.interval)
        dist.barrier()  # until then a slower rank may still draw bytes from this card
        sent.append((here.card_bytes() - before) / contestant.interval)
        late = time.monotonic() - begin > options.seconds and len(seconds) >= 2
        more = here.agree(int(len(seconds) < options.repeats and not late))
    close()
    return seconds, sent


def compare(rows: Sequence[Row], wait: float) -> None:
    """How many times sooner than the yardstick; the same if the yardstick could hide all of the wait behind its
    exchange; and both without the wait. None where the yardstick did not run."""
    base = next((row["seconds"] for row in rows if row["contestant"] == YARDSTICK), None)
    for row in rows:
        row["speedup"] = base / row["seconds"] if base else None
        row["speedup_hidden"] = (base - wait) / row["seconds"] if base else None
        row["speedup_without_wait"] = (base - wait) / row["seconds_without_wait"] if base else None


def report(rows: Sequence[Row], options: argparse.Namespace, numel: int) -> None:
    title = f"a step of {options.model} ({numel:,} elements), {options.wait:g} s of waiting in it, {link()}"
    note = (
        f"sooner: than {YARDSTICK}; hidden: if that could hide the whole wait behind its exchange; alone: without the "
        f"wait. 0/1 Adam: the mean over {options.local_steps} steps with one exchange."
    )
    columns = ["contestant", "s per step", "half of all", "without\nthe wait", "bytes\n/step", "payload", "sooner",
               "hidden", "alone"]  # fmt: skip
    lines = [
        [
            row["contestant"],
            tables.number(row["seconds"]),
            f"{tables.number(row['seconds_spread'][0])} to {tables.number(row['seconds_spread'][1])}",
            tables.number(row["seconds_without_wait"]),
            tables.number(row["bytes_sent"], " B"),
            tables.number(row["payload_bytes"], " B"),
            *(tables.times(row[key]) for key in ("speedup", "speedup_hidden", "speedup_without_wait")),
        ]
        for row in rows
    ]
    console = need("rich.console", "optimizers.py").Console(width=None if sys.stdout.isatty() else 160)
    console.print(tables.table(title, columns, lines, note))
    if options.json:
        write(
            options.json, "optimizers-throughput", list(rows), model=options.model, numel=numel, link=link(), lab=lab(),
            wait=options.wait, local_steps=options.local_steps,
        )  # fmt: skip
        print(f"written: {options.json}", flush=True)
