"""A recorded run for the report: the character transformer between two real processes.

torchrun --nproc-per-node 2 benchmarks/recorded_run.py --folder runs/lgreco --reducer "LGreCo(PowerSGD(4))"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tasks
from loop import loss_of
from ranks import ranks
from torch.nn.parallel import DistributedDataParallel

import compcomm as cc


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--reducer", required=True, help="as in Python")
    parser.add_argument("--folder", type=Path, required=True, help="of the run")
    parser.add_argument("--task", default="charlm", choices=["charlm", "digits"])
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    task = tasks.load(options.task)
    with ranks() as here:
        module = task.model(0)
        model = DistributedDataParallel(module)
        optimizer, schedule = task.optimizer(module)
        hook = cc.attach(model, cc.parse(options.reducer), optimizer=optimizer)
        with cc.report.Recorder(options.folder, hook, errors_every=20) as recorder:
            for step in range(options.steps):
                x, y = task.batch(0, step, here.rank)
                loss = loss_of(model(x), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                recorder.step(loss=loss)
        if here.first:
            print(hook.report())
        hook.detach()


if __name__ == "__main__":
    main()
