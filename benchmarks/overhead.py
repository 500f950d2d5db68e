"""What the hook itself costs: DDP on parameters of ResNet-50's shapes, without a hook, with Exact(), and with others.

    torchrun --nproc-per-node 2 benchmarks/overhead.py --json overhead.json

Real DDP and real backward passes; the loss is sum_i <p_i, c_i>, whose backward costs next to nothing, so what is
measured is DDP and the hook. The contestants take turns step by step, so that noise meets all of them alike.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
import torch.distributed as dist
from common import write
from ranks import lab, link, ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import compcomm as cc
from compcomm.plan.shapes import resnet50
from compcomm.report.metrics import timing


class Linear(nn.Module):
    """sum_i <p_i, c>, c one constant per parameter: gradients of the right sizes for one pass over memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(shape) for _, shape in resnet50())

    def forward(self, scale: Tensor) -> Tensor:
        return torch.stack([p.sum() for p in self.weights]).sum() * scale


def main() -> None:
    options = arguments()
    with ranks() as here:
        names: list[str] = ["None", *options.reducer]
        models: list[nn.Module] = []
        for name in names:
            models.append(DistributedDataParallel(Linear(), gradient_as_bucket_view=True))
            if name != "None":
                cc.attach(models[-1], cc.parse(name))
        scale = torch.ones((), requires_grad=True)
        seconds: list[list[float]] = [[] for _ in names]
        for step in range(options.steps + 3):
            for model, spent in zip(models, seconds, strict=True):
                dist.barrier()
                loss = model(scale)
                start = time.perf_counter()
                loss.backward()
                if step >= 3:  # DDP rebuilds its buckets after the first
                    spent.append(time.perf_counter() - start)
        rows: list[dict[str, Any]] = []
        for name, spent in zip(names, seconds, strict=True):
            found = timing(here.slowest(spent))
            rows.append(
                {
                    "reducer": name,
                    "world_size": here.world,
                    "seconds": found.median,
                    "seconds_spread": found.spread,
                    "repeats": options.steps,
                }
            )
        for row in rows:
            row["ratio"] = row["seconds"] / rows[0]["seconds"]
            if here.first:
                print(f"{row['reducer']:50} {row['seconds'] * 1e3:8.1f} ms  {row['ratio']:.3f}", flush=True)
        if here.first and options.json:
            write(options.json, "overhead", rows, model="resnet50", link=link(), lab=lab())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--reducer", nargs="+", action="extend", default=["Exact()"], help="beside DDP without a hook")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", help="file for the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
