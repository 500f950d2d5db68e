"""Seconds to average one gradient between workers: DDP's buckets, real hooks, no backward pass to hide behind.

    launch/netlab --hosts 2 --rate 1gbit -- python benchmarks/exchange.py --model resnet50 --json exchange.json
    torchrun --nproc-per-node 2 benchmarks/exchange.py --model shapes.py --reducer "TopK(ratio=0.01)"

FILE as a model: a .py with `shapes()` that gives (name, shape) pairs, or a .pt state dict. PyTorch's own hooks run in
the same job. A reducer that uses hints of its last step (top-k's threshold) gets two rows: warm, as in training, and
cold, without hints. The clock runs from the moment when all ranks have all their buckets until the slowest rank has the
last mean. Gradients differ from step to step (see replay.py); the relative error is that of the mean of one step.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import write
from contestants import Contestant, compcomm, peers
from ranks import Ranks, counted_per, lab, link, ranks
from replay import Bucket, Gradients, Named, Shapes, cut, run

import compcomm as cc
from compcomm.core.optional import need
from compcomm.plan import shapes
from compcomm.report import tables
from compcomm.report.metrics import timing

DEFAULT = (
    "Exact()",
    "Cast(bfloat16)",
    "ErrorFeedback(QSGD(bits=4, rounding='nearest'))",
    "ErrorFeedback(SignScale())",
    "ErrorFeedback(TopK(ratio=0.01))",
    "EF21(TopK(ratio=0.01))",
    "EControl(TopK(ratio=0.01))",
    "DGC(TopK(ratio=0.01))",
    "PowerSGD(rank=4)",
)
CROWD = ("SharedScale(QSGD(bits=4))", "ErrorFeedback(SparseAllReduce(TopK(ratio=0.01)))")
"""Routes that have a meaning of their own among more than two ranks."""
WARM_UP = 3  # steps that are not counted: memory is touched, PowerSGD has begun
Row = dict[str, Any]


def main() -> None:
    options = arguments()
    model = Shapes(find(options.model))
    numel = sum(p.numel() for p in model.parameters())
    with ranks() as here:
        rows: list[Row] = []
        default = DEFAULT + (CROWD if here.world > 2 else ())
        reducers = [cc.parse(text) for text in options.reducer or default]
        buckets = cut(model)
        if here.first:
            sizes = ", ".join(f"{4 * b.flat.numel() / 2**20:.1f}" for b in buckets)
            print(f"{options.model}: {numel:,} elements in buckets of {sizes} MiB; {here.world} ranks, {link()}")
        gradients = Gradients(buckets, here.rank, here.world)
        for reducer in reducers:
            with compcomm(reducer, model, buckets, here.world) as contestant:
                rows += contest(contestant, buckets, gradients, here, options)
        if options.peers:
            for contestant in peers(numel, here.world):
                if contestant.one_bucket:
                    del gradients
                    buckets = cut(model, sys.maxsize)
                    gradients = Gradients(buckets, here.rank, here.world)
                rows += contest(contestant, buckets, gradients, here, options)
        exact = next((row["seconds"] for row in rows if row["reducer"] == "Exact()"), None)
        for row in rows:
            row["speedup"] = exact / row["seconds"] if exact else None
        if here.first:
            title = f"one gradient of {options.model} ({numel:,} elements) between {here.world} ranks, {link()}"
            console = need("rich.console", "exchange.py").Console(width=None if sys.stdout.isatty() else 160)
            console.print(tables.exchange(rows, title, f"bytes: what the network card counts, {counted_per()}"))
            if options.json:
                write(options.json, "exchange", rows, model=options.model, numel=numel, link=link(), lab=lab())
                print(f"written: {options.json}", flush=True)


def contest(
    contestant: Contestant, buckets: list[Bucket], gradients: Gradients, here: Ranks, options: argparse.Namespace
) -> list[Row]:
    """Steps until they are enough; one row, or a cold and a warm one."""
    step = 0
    for _ in range(WARM_UP):
        measure(contestant, buckets, gradients, here, step)
        step += 1
    rows: list[Row] = []
    for cold in (True, False) if contestant.forget else (False,):
        seconds: list[float] = []
        sent: list[float] = []
        errors: list[float] = []
        begin = time.monotonic()
        more = 1
        while more:
            if cold and contestant.forget:
                contestant.forget()
            s, b, e = measure(contestant, buckets, gradients, here, step)
            seconds.append(s)
            sent.append(b)
            errors.append(e)
            step += 1
            late = time.monotonic() - begin > options.seconds and len(seconds) >= 3
            more = here.agree(int(len(seconds) < options.repeats and not late))
        seconds, sent = here.slowest(seconds), here.mean(*sent)
        found = timing(seconds)
        rows.append(
            {
                "reducer": contestant.name,
                "world_size": here.world,
                "cold": cold,
                "seconds": found.median,
                "seconds_spread": found.spread,
                "repeats": len(seconds),
                "bytes_sent": timing(sent).median,
                "payload_bytes": contestant.payload,
                "relative_error": timing(errors).median,
            }
        )
    return rows


def measure(
    contestant: Contestant, buckets: list[Bucket], gradients: Gradients, here: Ranks, step: int
) -> tuple[float, float, float]:
    """One step on this rank: seconds, bytes on the card, relative error of the mean."""
    gradients.fill(step)
    dist.barrier()
    before = here.card_bytes()
    seconds = run(buckets, contestant.hook, contestant.state, contestant.finish)
    dist.barrier()  # until then a slower rank may still draw bytes from this card
    return seconds, here.card_bytes() - before, gradients.error(step)


def find(model: str) -> list[Named]:
    """The shapes that a name or a file stands for, in forward order.

    Raises:
        ValueError: the name is unknown, or the file is of another kind.
    """
    known = {"resnet50": shapes.resnet50, "gpt2": shapes.gpt2}
    if model in known:
        return list(known[model]())
    path = Path(model)
    if path.suffix == ".py" and path.is_file():
        return [(str(name), tuple(int(n) for n in shape)) for name, shape in runpy.run_path(model)["shapes"]()]
    if path.suffix in (".pt", ".pth") and path.is_file():
        state = torch.load(path, map_location="cpu", weights_only=True)
        return [(name, tuple(t.shape)) for name, t in state.items() if torch.is_tensor(t) and t.is_floating_point()]
    raise ValueError(
        f"--model {model}: no such model. Give {' or '.join(known)}, a .py file with shapes(), or a .pt state dict."
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--model", default="resnet50", help="resnet50, gpt2, or a .py or .pt file")
    parser.add_argument(
        "--reducer",
        nargs="+",
        action="extend",
        help="as in Python, one or more (default: six of them, eight for more than two ranks)",
    )
    parser.add_argument("--repeats", type=int, default=15, help="measured steps of each (default: 15)")
    parser.add_argument(
        "--seconds", type=float, default=30, help="but stop after so long and three steps (default: 30)"
    )
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave PyTorch's hooks out")
    parser.add_argument("--json", help="file for the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
