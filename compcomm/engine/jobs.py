"""What the scheduler takes in and keeps: a step, the buckets of it, and how it ended, where a device has yet to say."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any

from torch import Tensor

from ..core.deferred import DeferredError
from ..core.reducer import Reducer
from ..core.source import Source, Target
from ..core.state import Store
from .running_flow import RunningFlow


@dataclass(eq=False)
class Step:
    """One backward pass: ``done`` is set when every flow has had its Commit, ``error`` says what went wrong; ``over``
    when what is reviewed after it is done too, while the host goes on. ``counted``: whether it has a number of its own;
    else it is ignored but for its mean."""

    reducer: Reducer
    unscale: float
    watch: bool
    counted: bool = True
    done: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    ended: bool = False
    """Whether the host has ended it."""
    buckets: int = 0
    """So many have come: a bucket's number is its place in the order in which they come, equal on all ranks."""
    flats: list[Tensor] = field(default_factory=list[Tensor])
    """What is written to while the step runs: what its buckets came in, and where their means go."""
    store: Store | None = None
    kept: bool = False
    """Whether it is kept what memory held before."""
    recorded: bool = False
    """Whether it is recorded as a CUDA graph."""
    bad: bool | None = None
    """Whether memory took it back; None until that is known."""
    waited: float = 0.0
    """Seconds that the host waited within its backward pass."""
    waited_from: float = 0.0
    delivered: float = 0.0
    """When the host began to wait, and when it got its last bucket."""

    @property
    def exposed(self) -> float:
        """Seconds that the host waited for its buckets with nothing else to do."""
        behind = max(0.0, self.delivered - self.waited_from) if self.waited_from and self.delivered else 0.0
        return self.waited + behind

    def end(self) -> None:
        """Lets everybody go who waits."""
        self.done.set()
        self.over.set()


@dataclass(eq=False)
class PendingStep:
    """A step whose flows stand at their Commits, while the device has yet to say how it went: ``words`` (int64, on the
    host once ``event`` has fired) are whether it was bad, and one for each fault."""

    step: Step
    flows: list[RunningFlow]
    faults: list[DeferredError]
    words: Tensor
    event: Any

    def outcome(self, capturing: bool = False) -> tuple[bool, Exception | None]:
        """Whether the step was bad, and what a peer did wrong."""
        if capturing:
            written(self.words)
        elif self.event is not None:
            self.event.synchronize()
        bad, *words = self.words.tolist()
        said = (fault.explain(word) for fault, word in zip(self.faults, words, strict=True) if word)
        return bool(bad), next(said, None)


UNWRITTEN = -1
"""What no word is that a device writes: words are counts and codes."""


def written(words: Tensor, patience: float = 60.0) -> None:
    """Waits, without a call that a capture forbids, until a device has written all of these words on the host.

    Raises:
        RuntimeError: it has not.
    """
    end = perf_counter() + patience
    while bool((words == UNWRITTEN).any()):
        if perf_counter() > end:
            raise RuntimeError(
                f"the device has not ended the step before a CUDA graph in {patience:.0f} s. Call "
                f"torch.cuda.synchronize() before the capture: it shows what went wrong there."
            )
        sleep(1e-5)


@dataclass(eq=False)
class Job:
    """A bucket to average: its mean goes into ``target``, then ``future`` gets that tensor. ``source`` may be where
    that is, and is written over. ``last``: no bucket of the step follows; ``now``: whatever follows, this one's mean
    comes first. ``error``: why there is nothing to average. ``since``: where the host's stream was when it came
    (``Scheduler.mark``)."""

    step: Step
    source: Source
    target: Target
    index: int
    last: bool
    future: Any
    since: Any = None
    now: bool = False
    error: Exception | None = None

    def fail(self) -> None:
        """Nothing but NaN comes of it."""
        self.target.out.fill_(float("nan"))
        self.future.set_result(self.target.out.flat)
