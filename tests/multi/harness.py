"""Real worker processes over Gloo that stay alive between tests, so that torch is imported once per process.

A scenario is a top-level function ``scenario(rank, world, **arguments)``; what it returns comes back, one value per
rank; what it raises is raised here, with the ranks' tracebacks. Ranks meet through a file, so no port is taken.

Every scenario has a default group of its own. Each Gloo group keeps three threads that wake up all the time, and a
group of ours stays until ``destroy_process_group()``: without that, a folder of tests leaves a thousand threads, and
two cores spend a third of their time on switching between them.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

_READY = "ready"
_SPAWN = multiprocessing.get_context("spawn")


class WorkerError(AssertionError):
    """A scenario raised, died or hung."""


class Workers:
    """``world`` processes with a default group. ``run`` starts them when they are not there.

    ``backend``: what carries the collectives of each kind of device; with NCCL every rank has a GPU to itself.
    """

    def __init__(self, world: int, backend: str = "cpu:gloo") -> None:
        self.world, self.backend = world, backend
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._meetings = itertools.count()

    def run(self, scenario: Callable[..., Any], *, timeout: float = 60, dead: tuple[int, ...] = (), **arguments: Any):
        """Runs a scenario on all ranks. ``dead``: ranks that are meant to die; None stands for their result."""
        if not self._processes:
            self._start()
        assert self._folder is not None
        meet = os.path.join(self._folder.name, f"meet{next(self._meetings)}")
        for pipe in self._pipes:
            pipe.send((scenario, arguments, meet))
        deadline = time.monotonic() + timeout
        results: list[Any] = [None] * self.world
        failures: list[str] = []
        for rank, pipe in enumerate(self._pipes):
            try:
                if not pipe.poll(max(0.0, deadline - time.monotonic())):
                    failures.append(f"rank {rank}: nothing within {timeout} s")
                    continue
                good, results[rank] = pipe.recv()
                if not good:
                    failures.append(f"rank {rank}: {results[rank]}")
            except (EOFError, ConnectionResetError):
                if rank not in dead:
                    failures.append(f"rank {rank}: died (exit code {self._processes[rank].exitcode})")
        if failures or dead:
            self.stop()
        if failures:
            raise WorkerError("\n".join(failures))
        return results

    def stop(self) -> None:
        """Ends the processes that this object started."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
        self._processes, self._pipes = [], []
        if self._folder is not None:
            self._folder.cleanup()

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(self.world):
            here, there = _SPAWN.Pipe()
            process = _SPAWN.Process(target=_serve, args=(rank, self.world, self.backend, there), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)
        for rank, pipe in enumerate(self._pipes):  # how long a start takes is the machine's affair, and no test's
            if not pipe.poll(100) or pipe.recv() != _READY:
                self.stop()
                raise WorkerError(f"rank {rank}: not started within 100 s")


def _serve(rank: int, world: int, backend: str, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # torch.compile asks every tensor for its gradient and hides this warning only from the printer, not from "error".
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf Tensor")
    # Autograd's own threads begin without a CUDA context.
    warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")
    options: dict[str, Any] = {"device_id": torch.device("cuda", rank)} if "nccl" in backend else {}
    pipe.send(_READY)
    try:
        while True:
            scenario, arguments, meet = pipe.recv()
            dist.init_process_group(
                init_method=f"file://{meet}", backend=backend, rank=rank, world_size=world,
                timeout=timedelta(seconds=40), **options,
            )  # fmt: skip
            try:
                answer = (True, scenario(rank, world, **arguments))
            except BaseException:
                answer = (False, traceback.format_exc())
            pipe.send(answer)
            del scenario, arguments, answer
            gc.collect()  # whatever still holds a group would keep its threads
            if dist.is_initialized():
                dist.destroy_process_group()
    except (EOFError, ConnectionResetError, KeyboardInterrupt):
        pass
