"""Real worker processes over Gloo that stay alive between tests; torch and the package are imported once, and they are
forks of that.

A scenario is a top-level function ``scenario(rank, world, **arguments)``; what it returns comes back, one value per
rank; what it raises is raised here, with the ranks' tracebacks. Ranks meet through a file, so no port is taken.

Pools of different sizes share their processes (a ``Crew``): rank 1 of two is rank 1 of four, too. What torch's modules
made at import, at whichever scenario's, is frozen for the garbage collector, which runs after every scenario: else it
takes longer than many of them.

Every scenario has a default group of its own. Each Gloo group keeps three threads that wake up all the time, and a
group of ours stays until ``destroy_process_group()``: without that, a folder of tests leaves a thousand threads, and
two cores spend a third of their time on switching between them.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import weakref
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from tests.patience import patience

_READY = "ready"
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["torch", "torch.distributed", "torch.nn.parallel", "compcomm"])  # once for all processes


class WorkerError(AssertionError):
    """A scenario raised, died or hung."""


class Crew:
    """Processes by rank, started when a scenario first wants that many, and the folder in which they meet.

    ``backend``: what carries the collectives of each kind of device; with NCCL every rank has a GPU to itself.
    """

    def __init__(self, backend: str = "cpu:gloo") -> None:
        self._backend = backend
        self.processes: dict[int, Any] = {}
        self._pipes: dict[int, Connection] = {}
        self._folder = tempfile.mkdtemp(prefix="compcomm-meet-")
        self._finally = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._meetings = itertools.count()

    def pipes(self, world: int) -> list[Connection]:
        """Of the first ``world`` ranks, which have started."""
        begun = [rank for rank in range(world) if rank not in self.processes]
        for rank in begun:
            here, there = _FORKS.Pipe()
            process = _FORKS.Process(target=_serve, args=(rank, self._backend, there), daemon=True)
            process.start()
            there.close()
            self.processes[rank], self._pipes[rank] = process, here
        for rank in begun:  # how long a start takes is the machine's affair, and no test's
            if not self._pipes[rank].poll(patience(100)) or self._pipes[rank].recv() != _READY:
                self.stop()
                raise WorkerError(f"rank {rank}: not started within 100 s")
        return [self._pipes[rank] for rank in range(world)]

    def meeting(self) -> str:
        """A file that no group has met through yet."""
        return os.path.join(self._folder, f"meet{next(self._meetings)}")

    def stop(self) -> None:
        """Ends the processes that this object started."""
        self.end(tuple(self.processes))

    def end(self, ranks: tuple[int, ...]) -> None:
        """Ends those of some ranks: others take their place when a scenario wants them."""
        there = [rank for rank in ranks if rank in self.processes]
        for rank in there:
            self._pipes.pop(rank).close()
        for process in [self.processes.pop(rank) for rank in there]:
            process.join(timeout=patience(5))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()


class Workers:
    """``world`` processes of a crew, with a default group. ``run`` starts them when they are not there."""

    def __init__(self, world: int, backend: str = "cpu:gloo", crew: Crew | None = None) -> None:
        self.world, self.crew = world, crew or Crew(backend)

    def run(self, scenario: Callable[..., Any], *, timeout: float = 60, dead: tuple[int, ...] = (), **arguments: Any):
        """Runs a scenario on all ranks. ``dead``: ranks that are meant to die; None stands for their result."""
        pipes, meet = self.crew.pipes(self.world), self.crew.meeting()
        for pipe in pipes:
            pipe.send((scenario, arguments, self.world, meet))
        deadline = time.monotonic() + patience(timeout)
        results: list[Any] = [None] * self.world
        failures: list[str] = []
        for rank, pipe in enumerate(pipes):
            try:
                if not pipe.poll(max(0.0, deadline - time.monotonic())):
                    failures.append(f"rank {rank}: nothing within {timeout} s")
                    continue
                good, results[rank] = pipe.recv()
                if not good:
                    failures.append(f"rank {rank}: {results[rank]}")
            except (EOFError, ConnectionResetError):
                if rank not in dead:
                    self.crew.processes[rank].join(patience(5))  # the pipe ends before the exit code is known
                    failures.append(f"rank {rank}: died (exit code {self.crew.processes[rank].exitcode})")
        self.crew.end(dead)
        if failures:
            self.stop()
            raise WorkerError("\n".join(failures))
        return results

    def stop(self) -> None:
        """Ends these processes, and others take their place with the next scenario."""
        self.crew.end(tuple(range(self.world)))


def _forget_meshes() -> None:
    """DTensor keeps what it has found out by mesh, and takes a new mesh for an equal one whose groups are gone."""
    from torch.distributed.tensor import _redistribute, debug

    debug._clear_sharding_prop_cache()
    _redistribute._gen_transform_infos.cache_clear()


def _serve(rank: int, backend: str, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    faulthandler.enable()  # a crash says where
    warnings.simplefilter("error")
    # torch.compile asks every tensor for its gradient and hides this warning only from the printer, not from "error".
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf Tensor")
    # Autograd's own threads begin without a CUDA context.
    warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")
    options: dict[str, Any] = {"device_id": torch.device("cuda", rank)} if "nccl" in backend else {}
    gc.collect()
    gc.freeze()
    imported = len(sys.modules)
    pipe.send(_READY)
    try:
        while True:
            scenario, arguments, world, meet = pipe.recv()
            try:
                dist.init_process_group(
                    init_method=f"file://{meet}", backend=backend, rank=rank, world_size=world,
                    timeout=timedelta(seconds=patience(40)), **options,
                )  # fmt: skip
                dist.barrier()  # a rank that has nothing to say would leave while others still connect to it
                answer = (True, scenario(rank, world, **arguments))
            except BaseException:
                answer = (False, traceback.format_exc())
            pipe.send(answer)
            del scenario, arguments, answer
            gc.collect()  # whatever still holds a group would keep its threads
            if dist.is_initialized():
                dist.destroy_process_group()
            if "torch.distributed.tensor" in sys.modules:
                _forget_meshes()
            if len(sys.modules) > imported:  # the compiler's modules alone hold a hundred thousand objects
                imported = len(sys.modules)
                gc.freeze()
    except (EOFError, ConnectionResetError, KeyboardInterrupt):
        pass
