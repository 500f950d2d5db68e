"""Where a flow runs, and the scratch memory that it has there."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .deferred import DeferredBool, DeferredError
from .random import Rng


class Arena:
    """Scratch memory that is kept from step to step, one buffer per (bucket, purpose)."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.buffers: dict[tuple[int, str, torch.dtype], Tensor] = {}
        """What ``Context.buffer`` gives."""
        self.shared: dict[tuple[str, torch.dtype], Tensor] = {}
        """The same, where one flow after the other may have it."""
        self._free: list[Tensor] = []

    def lend(self, numel: int) -> Tensor:
        """``numel`` fp32 elements until ``take_back``: flows of several buckets share what each needs for a moment."""
        best = min((t for t in self._free if t.numel() >= numel), key=Tensor.numel, default=None)
        if best is None:
            self._free = self._free[1:]  # too small: let go
            best = torch.zeros(numel, dtype=torch.float32, device=self.device)
        else:
            self._free = [t for t in self._free if t is not best]
        return best[:numel]

    def take_back(self, lent: Tensor) -> None:
        """Ends a loan."""
        self._free.append(lent if lent._base is None else lent._base)

    def clear(self) -> None:
        """Lets all of it go: nobody who ran here runs again."""
        self.buffers.clear()
        self.shared.clear()
        self._free = []

    def nbytes(self) -> int:
        """Bytes held."""
        held = (*self.buffers.values(), *self.shared.values(), *self._free)
        return sum(b.numel() * b.element_size() for b in held)


class Nested(Protocol):
    """How a bucket is averaged where "ranks" are nodes of several (``compcomm.routes.within``)."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def own(self, layout: Any) -> Any: ...

    def every(self, layout: Any) -> Any: ...

    def reduce(self, reducer: Any, source: Any, target: Any, state: Any, ctx: Context) -> Generator[Any, bool, Any]: ...


@dataclass
class Context:
    """Where a flow runs: which rank of how many, which step, which bucket of the step.

    ``watch``: whether anything in this attachment must know of non-finite results. ``unscale``: 1/loss-scale.
    ``bad`` is the flow's answer: it met a non-finite value on some rank. ``faults``: what its peers may have done,
    where the device knows and the host is yet to look (``PendingStep``). ``participating``: whether this rank is one of
    the ``present`` (None: all) in this step.

    What a scheme around a route tells it: ``status`` (as the kernels write it: non-finite, then nonzero per segment) of
    the gradient, where what is coded is not it; ``weights`` of the ranks, where their sum replaces the mean.
    """

    rank: int = 0
    world: int = 1
    step: int = 0
    bucket: int = 0
    seed: int = 0
    unscale: float = 1.0
    watch: bool = True
    participating: bool = True
    present: int | None = None
    status: Tensor | None = None
    weights: tuple[float, ...] | None = None
    arena: Arena = field(default_factory=Arena)
    bad: DeferredBool = False
    faults: list[DeferredError] = field(default_factory=list[DeferredError])
    tag: str = ""
    alone: bool = False
    """Whether no other bucket is under way until this one's mean is delivered."""
    apart: bool = False
    """A part of the bucket had no message to say "bad" in, so this rank's ``bad`` is no other's until the end of the
    step. The same on all ranks."""
    dtype: torch.dtype | None = None
    """Of the gradient, where the bucket is a wider copy of it: what travels exact need not be wider."""
    within: Nested | None = None
    """What goes on inside this node, where ranks are nodes."""

    @property
    def rng(self) -> Rng:
        """The coordinates of this rank's draws in this step."""
        return Rng(self.seed, self.step, self.rank)

    def buffer(self, tag: str, numel: int, dtype: torch.dtype = torch.uint8, *, brief: bool = False) -> Tensor:
        """Scratch memory of this bucket, kept until the next step asks for the same: ``numel`` elements whose content
        is whatever was left there. ``brief``: nobody needs it any more once the mean is delivered; so is all of it
        where a step leaves nothing to undo. Buckets that come alone then have one piece of memory between them."""
        if self.alone and (brief or not self.watch):
            shared = self.arena.shared.get((self.tag + tag, dtype))
            if shared is None or shared.numel() < numel:
                shared = torch.zeros(numel, dtype=dtype, device=self.arena.device)
                self.arena.shared[self.tag + tag, dtype] = shared
            return shared[:numel]
        buffers, key = self.arena.buffers, (self.bucket, self.tag + tag, dtype)
        found = buffers.get(key)
        if found is None or found.numel() != numel:
            found = buffers[key] = torch.zeros(numel, dtype=dtype, device=self.arena.device)
        return found
