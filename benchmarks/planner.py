"""Predicted against measured: what ``python -m compcomm plan --measure`` says of a step, beside the step itself.

    launch/netlab --hosts 4 --rate 300mbit --rank0-raw -- .venv/bin/python benchmarks/planner.py --json out.json

Real DDP with real hooks on the parameters of a model, whose computation is waiting: a third of --wait before the
backward pass, the rest in it, so much for every bucket. The ranks of a lab share a machine's cores, and a computation
that spins would be of that machine and not of many hosts. What the plan knows: small collectives, the kernels on a
sample of the model (all ranks at once), and a step that exchanges nothing. It never sees a step that it predicts.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from common import write
from ranks import Ranks, lab, link, ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import compcomm as cc
from compcomm.core.optional import need
from compcomm.plan import models, planner
from compcomm.plan.buckets import cut
from compcomm.plan.kernels import calibrate
from compcomm.plan.measure import measure
from compcomm.plan.methods import PLAIN, Method, method
from compcomm.report import tables
from compcomm.report.metrics import timing
from compcomm.transports.process_group import ProcessGroup

REDUCERS = (
    "Cast(bfloat16)",
    "ErrorFeedback(QSGD(bits=4, rounding='nearest'))",
    "PowerSGD(rank=4)",
    "ErrorFeedback(SignScale())",
    "ErrorFeedback(TopK(ratio=0.01))",
)
FORWARD = 1 / 3
SKIPPED_STEPS = 2  # steps that are not counted: DDP cuts its buckets anew after the first
Row = dict[str, Any]


class Waiting(nn.Module):
    """Parameters whose gradients are noise, there after a wait: every bucket's parameters share the time of one."""

    def __init__(self, model: models.Model, wait: float, rank: int) -> None:
        super().__init__()
        self.wait = wait
        buckets = cut(model.shapes)
        backward = wait * (1 - FORWARD) / len(buckets)
        total = {s.name: layout.numel for layout in buckets for s in layout.segments}
        for name, shape in model.shapes:  # a module allows no dot in the name of a parameter of its own
            self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.full(shape, 0.01)))
        self.waits = [backward * p.numel() / total[name.replace("/", ".")] for name, p in self.named_parameters()]
        longest = max(p.numel() for p in self.parameters())
        draw = torch.Generator().manual_seed(rank)
        self.noise, self.step = torch.randn(longest + 4099, generator=draw) * 1e-3, 0

    def forward(self) -> Tensor:
        self.step += 1
        start = 1009 * self.step % 4099
        time.sleep(self.wait * FORWARD)
        parts = zip(self.parameters(), self.waits, strict=True)
        return torch.stack([_Noise.apply(p, self.noise[start:], wait) for p, wait in parts]).sum()


class _Noise(torch.autograd.Function):
    """0, whose gradient is noise and takes its time."""

    debt = 0.0

    @staticmethod
    def forward(ctx: Any, p: Tensor, noise: Tensor, wait: float) -> Tensor:
        ctx.noise, ctx.shape, ctx.wait = noise, p.shape, wait
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None, None]:
        begin = time.perf_counter()
        _Noise.debt += ctx.wait
        if _Noise.debt > 1e-3:  # a sleep takes longer than it should, and the next one less
            time.sleep(_Noise.debt)
            _Noise.debt -= time.perf_counter() - begin
        return ctx.noise[: ctx.shape.numel()].view(ctx.shape), None, None


def main() -> None:
    options = arguments()
    model = models.find(options.model)
    methods = [PLAIN, *map(method, options.reducer or REDUCERS)]
    with ranks() as here:
        forward, compute = computation(model, here, options)
        plan = predicted(model, methods, compute, forward / compute)
        if here.first:
            print(plan, flush=True)
            stretched = {name: round(k.stretch, 2) for name, k in plan.kernels.items()}
            print(f"{plan.link.as_dict()['speeds']}\nstretch: {stretched}\nload: {os.getloadavg()}", flush=True)
        rows = [compared(m, plan, model, here, options) for m in methods]
        if here.first:
            report(rows, plan, options)


def predicted(model: models.Model, methods: Sequence[Method], compute: float, forward: float) -> planner.Plan:
    """The plan, from small exchanges over a group of its own."""
    transport = ProcessGroup(dist.new_group())
    try:
        line, buckets, world = measure(transport), cut(model.shapes), transport.world
        kernels = {m.text: calibrate(m.resolved(world), buckets, world, transport, line) for m in methods}
        return planner.made(model, buckets, world, line, compute, methods, kernels, forward)
    finally:
        transport.close()


def computation(model: models.Model, here: Ranks, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a forward pass, and of a whole step that exchanges nothing."""

    def nothing(state, bucket):  # no annotations: DDP reads them, and takes no strings
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    ddp = wrapped(model, here, options)
    ddp.register_comm_hook(None, nothing)
    return steps(ddp, here, 1e9, 6)[1:]


def wrapped(model: models.Model, here: Ranks, options: argparse.Namespace) -> DistributedDataParallel:
    """Its parameters are equal on all ranks already: sending them would take longer than the measured steps."""
    module = Waiting(model, options.wait, here.rank)
    return DistributedDataParallel(module, gradient_as_bucket_view=True, init_sync=False)


def compared(m: Method, plan: planner.Plan, model: models.Model, here: Ranks, options: argparse.Namespace) -> Row:
    """One row: a method's step, measured, beside its prediction."""
    ddp = wrapped(model, here, options)
    attachment = None if m.reducer is None else cc.attach(ddp, m.reducer)
    try:
        before = here.card_bytes()
        seconds, _, measured = steps(ddp, here, options.seconds, options.repeats)
        sent = (here.card_bytes() - before) / (SKIPPED_STEPS + len(seconds))
        said = attachment.report().as_dict() if attachment is not None else {}
    finally:
        if attachment is not None:
            attachment.detach()
    del ddp
    gc.collect()
    row = next(r for r in plan.rows if r.prediction.method == m.text).prediction
    seen = {key: here.mean(said[key])[0] for key in ("kernel_seconds", "wire_seconds", "exposed_seconds") if said}
    error = row.seconds / measured - 1
    if here.first:
        took = f"predicted {row.seconds * 1e3:.1f} ms, measured {measured * 1e3:.1f} ms, {100 * error:+.1f} %"
        print(f"{m.short}: {took}  { ({k: round(v * 1e3, 1) for k, v in seen.items()}) }", flush=True)
    return {
        "reducer": "None" if m.reducer is None else m.text,
        "world_size": here.world,
        "predicted_seconds": row.seconds,
        "measured_seconds": measured,
        "measured_spread": timing(seconds).spread,
        "error": error,
        "repeats": len(seconds),
        "predicted": row.as_dict(),
        "measured": {**seen, "bytes_sent": here.mean(sent)[0]},
    }


def steps(ddp: nn.Module, here: Ranks, seconds: float, repeats: int) -> tuple[list[float], float, float]:
    """Each step's seconds at the slowest rank; medians of the forward pass and of the step."""
    spent: list[float] = []
    forward: list[float] = []
    begin, more, number = time.monotonic(), 1, 0
    while more:
        ddp.zero_grad()
        dist.barrier()
        start = time.perf_counter()
        loss = ddp()
        middle = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        number += 1
        if number > SKIPPED_STEPS:
            spent.append(end - start)
            forward.append(middle - start)
            late = time.monotonic() - begin > seconds and len(spent) >= 2
            more = here.agree(int(len(spent) < repeats and not late))
    spent, forward = here.slowest(spent), here.slowest(forward)
    return spent, timing(forward).median, timing(spent).median


def report(rows: Sequence[Row], plan: planner.Plan, options: argparse.Namespace) -> None:
    advised = "None" if plan.recommendation.method == "DDP" else plan.recommendation.method
    best = min(rows, key=lambda row: row["measured_seconds"])
    taken = next(row for row in rows if row["reducer"] == advised)
    regret = taken["measured_seconds"] / best["measured_seconds"] - 1
    errors = sorted(abs(row["error"]) for row in rows)
    note = (
        f"{sum(e <= 0.2 for e in errors)} of {len(rows)} within 20 %, median error "
        f"{100 * timing(errors).median:.1f} %; recommended: {advised}, {100 * regret:.1f} % above the best, "
        f"{best['reducer']}"
    )

    def line(row: Row) -> list[str]:
        low, high = row["measured_spread"]
        times = (f"{1e3 * row[key]:.1f}" for key in ("predicted_seconds", "measured_seconds"))
        return [row["reducer"], *times, f"{1e3 * low:.0f} to {1e3 * high:.0f}", f"{100 * row['error']:+.1f} %"]

    title = f"a step of {plan.model} ({plan.numel:,} elements), {options.wait:g} s of waiting in it, {link()}"
    console = need("rich.console", "planner.py").Console(width=None if sys.stdout.isatty() else 160)
    columns = ["reducer", "predicted\nms/step", "measured", "half of all", "error"]
    console.print(tables.table(title, columns, map(line, rows), note))
    if options.json:
        write(
            options.json, "planner", list(rows), model=plan.model, numel=plan.numel, link=link(), lab=lab(),
            wait=options.wait, load=os.getloadavg(), plan=plan.as_dict(), recommended=advised, best=best["reducer"],
            above_best=regret,
        )  # fmt: skip
        print(f"written: {options.json}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--model", default="resnet50", help="as python -m compcomm plan takes it")
    parser.add_argument("--reducer", nargs="+", action="extend", help="beside DDP without a hook (default: five)")
    parser.add_argument("--wait", type=float, default=0.2, help="seconds of waiting in place of compute (default: 0.2)")
    parser.add_argument("--repeats", type=int, default=12, help="measured steps of each (default: 12)")
    parser.add_argument("--seconds", type=float, default=15, help="but stop after so long and two steps (default: 15)")
    parser.add_argument("--json", help="file for the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
