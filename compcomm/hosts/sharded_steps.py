"""When a step begins and ends where gradients come unit by unit, as from ``fully_shard``, which knows no steps.

A step is a run of calls in one backward pass. It begins with the first of them, and is over when FSDP has finished the
pass: a callback of the autograd engine, queued behind FSDP's own, looks whether that is so. Three things make it less
simple, each of which was met:

- Activation checkpointing in its reentrant form runs a backward pass of its own for each block, whose end is not the
  end of the step: FSDP's callback of the outer pass is still due then.
- A model whose own forward is never called (Lightning calls ``training_step``) has several roots, each of which FSDP
  finishes by itself. The step is over when all units have come that came in the step before (in the first: all); where
  some stay away, it ends with the next forward pass, or when a unit comes again.
- A pass that raises never calls back. The next forward pass finds the step open: its payloads go back into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ..core.source import Source, Target
from ..core.state import StateError
from ..engine.attachment import Attachment
from ..engine.pace import Kind
from .backward import once_over
from .fsdp_internals import Unit

_torch: Any = torch


class ShardedSteps:
    """The steps of one attachment, on one rank."""

    def __init__(self, attachment: Attachment, units: Sequence[Unit]) -> None:
        self.attachment, self._units = attachment, units
        self._expected = {u.number for u in units if any(p.requires_grad for p in u.parameters)}
        self._seen: set[int] = set()
        self._task = -1
        self._rooted = False
        """Whether it is known that no unit is inside a module that was left out."""
        self._over = False
        """Whether FSDP seems to have finished since the last unit came."""
        attachment.steps.before_asked = self._asked
        self._handles = [
            module.register_forward_pre_hook(self._forward, prepend=True) for u in units for module in u.modules
        ]

    def average(self, unit: Unit, source: Source, target: Target) -> None:
        """Averages one unit's gradients; the mean is in ``target`` when it returns, on a GPU on its current stream."""
        a, task = self.attachment, _torch._C._current_graph_task_id()
        if a.steps.open and self._over and unit.number in self._seen:
            self._end()
        if not a.steps.open:
            kind = a.steps.pace.take(True, False)
            if kind is Kind.LOCAL:
                raise StateError(
                    "ignoring(average=False): fully_shard has room for averaged gradients alone. Call "
                    "model.set_requires_gradient_sync(False) before the pass, or ignore it with average=True."
                )
            self._seen.clear()
            a.begin_step(kind is Kind.STEP)
        since = perf_counter()
        future = a.submit(source, target, now=True)
        self._seen.add(unit.number)
        self._over = False
        if task != self._task:
            self._task = task
            once_over(self._finished)
        future.wait()
        a.steps.exposed += perf_counter() - since

    def detach(self) -> None:
        """Lets go of the model's modules."""
        for handle in self._handles:
            handle.remove()
        self.attachment.steps.before_asked = None

    def _finished(self) -> None:
        """A backward pass, or one within it, is over."""
        self._task = -1
        if not self.attachment.steps.open or any(u.finishing for u in self._units):
            return
        self._over = True
        if self._seen >= self._expected or len({id(u.root) for u in self._units}) == 1:
            self._end()

    def _end(self) -> None:
        self._expected, self._over = set(self._seen), False
        self.attachment.end_step()

    def _asked(self) -> None:
        """State is asked for."""
        if self.attachment.steps.open and self._over:
            self._end()

    @_torch._dynamo.disable
    def _forward(self, module: nn.Module, inputs: object) -> None:
        """Before a unit's forward pass; in a backward pass it is recomputed, and nothing has ended."""
        a = self.attachment
        if _torch._C._current_graph_task_id() != -1:
            return
        a.check()
        if not self._rooted and any(u.begun for u in self._units):
            self._rooted = True
            if all(u.inner for u in self._units):
                a.detach()
                raise RuntimeError(
                    "attach: the model is a part of another module that fully_shard has taken too, which would be "
                    "averaged apart from it. Give attach the outermost one. Nothing is attached now."
                )
        if not a.steps.open:
            return
        if self._over:
            self._end()
            return
        if any(u.finishing for u in self._units):
            raise RuntimeError(
                "the last backward pass raised, and fully_shard has not been told: it would reduce some units and "
                "leave others out. Call reset_iter_state() of the root module (torch 2.13 or later) on every rank."
            )
        a.abandon_step()
