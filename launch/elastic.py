"""One worker of a run that survives: handwritten digits under error feedback, with checkpoints that outlive SIGKILL.

    torchrun --standalone --nproc-per-node 2 --max-restarts 3 launch/elastic.py --folder runs/elastic --kill 17

Every rank saves its own model, optimizer and residuals every few steps; after a restart all go back to the newest step
that every rank has, and go on bit for bit. With ``--portable`` rank 0 saves one file, with the residuals merged, which
any number of workers may continue. ``--kill 17``: in the first life, rank 1 kills itself in step 17, in mid-backward.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compcomm as cc

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import tasks

SEED = 7


class Run:
    """Model, optimizer and attachment of one rank, and where they are kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.folder, self.merged = Path(options.folder), options.portable
        self.task = tasks.load("digits")
        self.model = DistributedDataParallel(self.task.model(SEED), bucket_cap_mb=0.3)
        self.optimizer, self.schedule = self.task.optimizer(self.model)
        self.attachment = cc.attach(self.model, cc.parse(options.reducer), seed=SEED, optimizer=self.optimizer)

    def file(self, step: int) -> Path:
        return self.folder / ("merged" if self.merged else f"rank{self.rank}of{self.world}") / f"step{step:06}.pt"

    def steps(self) -> list[int]:
        """Those of which there is a whole file."""
        return sorted(int(path.stem[4:]) for path in self.file(0).parent.glob("step*.pt"))

    def save(self, step: int) -> None:
        hook = self.attachment.portable_state_dict() if self.merged else self.attachment.state_dict()
        if self.rank == 0 or not self.merged:
            own = {
                "model": self.model.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
            }
            cc.checkpoint.save(self.file(step), {**own, "hook": hook})
            for old in self.steps()[:-2]:  # a peer may have died before it wrote its newest: two are enough
                self.file(old).unlink()

    def resume(self) -> int:
        """Goes back to the newest step that all ranks have; returns it, 0 where there is none."""
        newest = torch.tensor(max(self.steps(), default=0))
        dist.all_reduce(newest, dist.ReduceOp.MIN)
        step = int(newest)
        if step:
            saved = cc.checkpoint.load(self.file(step))
            self.model.module.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.schedule.load_state_dict(saved["schedule"])
            take = self.attachment.load_portable_state_dict if self.merged else self.attachment.load_state_dict
            take(saved["hook"])
        return step

    def train(self, step: int, kill: bool) -> None:
        batch = self.task.batch(SEED, step, self.rank)
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(batch.x), batch.y)
        if kill:
            next(self.model.module.parameters()).register_hook(lambda _: self.die(step))
        loss.backward()
        self.optimizer.step()
        self.schedule.step()

    def die(self, step: int) -> None:
        print(f"elastic: rank {self.rank} kills itself in step {step}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def loss(self) -> float:
        """On the held-out pictures, of all ranks."""
        shares = self.task.validation(self.rank, self.world)
        with torch.no_grad():
            found = [nn.functional.cross_entropy(self.model.module(b.x), b.y).double() for b in shares]
        total = torch.stack(found).mean()
        dist.all_reduce(total)
        return float(total / self.world)

    def digest(self) -> str:
        """Of the parameters' bits."""
        flat = torch.cat([p.detach().reshape(-1) for p in self.model.module.parameters()])
        return hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16]

    def pending(self) -> float:
        """The length of what is still to be applied: the mean residual (0: in codes, or none)."""
        merged: dict[str, Any] = self.attachment.portable_state_dict()["slots"].get("residual", {})
        numbers = [t for t in merged.values() if t.is_floating_point()]
        return float(sum(t.double().square().sum() for t in numbers) ** 0.5)


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    life = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    run = Run(options)
    first = run.resume()
    pending = run.pending()
    if run.rank == 0:
        print(f"elastic: life {life}, {run.world} workers, from step {first}, pending {pending:.6f}", flush=True)
    for step in range(first, options.steps):
        run.train(step, kill=step == options.kill and life == 0 and run.rank == 1)
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            run.save(step + 1)
    end = {"loss": run.loss(), "parameters": run.digest(), "pending": run.pending()}
    if run.rank == 0:
        end = {"steps": options.steps, "workers": run.world, "lives": life + 1, "began": first, **end}
        (run.folder / "end.json").write_text(json.dumps(end) + "\n")
        print(f"elastic: {json.dumps(end)}", flush=True)
    dist.barrier()
    run.attachment.detach()
    dist.destroy_process_group()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--folder", required=True, help="for checkpoints and end.json; a run goes on where one ended")
    parser.add_argument("--reducer", default="ErrorFeedback(TopK(ratio=0.01))")
    parser.add_argument("--steps", type=int, default=200, help="of the run in all, resumed ones included")
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--kill", type=int, default=-1, help="the step in which rank 1 dies, in its first life")
    parser.add_argument("--portable", action="store_true", help="one file for any number of workers")
    options = parser.parse_args()
    if options.every < 1 or options.steps < 1:
        parser.error(f"--every {options.every} and --steps {options.steps}: both are 1 or more")
    Path(options.folder).mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
