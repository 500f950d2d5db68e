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

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..core.layout import Bucket, Layout
from ..core.source import Source, Target
from ..engine.attachment import Attachment
from ..engine.pace import Kind
from .backward import graph_task, once_over
from .fsdp_internals import Unit, strangers
from .names import check_dtype

_torch: Any = torch


class ShardedSteps:
    """The steps of one attachment, on one rank."""

    def __init__(
        self, attachment: Attachment, model: nn.Module, units: Sequence[Unit], brings: Callable[[Unit], Layout]
    ) -> None:
        """``brings``: the layout of what a unit brings, of the parameters that want a gradient now."""
        self.attachment, self._model, self._units, self._brings = attachment, model, units, brings
        self._layouts: dict[int, Layout] = {}
        """What each unit brought last."""
        self._expected = {u.number for u in units if any(p.requires_grad for p in u.parameters)}
        self._seen: set[int] = set()
        self._task = -1
        self._rooted = False
        """Whether it is known that no unit is inside a module that was left out."""
        self._over = False
        """Whether FSDP seems to have finished since the last unit came."""
        self._nested = False
        """Whether the pass that brought the last unit has ended, as one within another that may still go on."""
        attachment.steps.before_asked = self._asked
        self._handles = [
            module.register_forward_pre_hook(partial(self._forward, u), prepend=True)
            for u in units
            for module in u.modules
        ]

    def fail(self, unit: Unit, layout: Layout, wanted: Layout, out: Tensor, why: str) -> None:
        """Says to the other ranks that this one cannot average a unit as it should, of ``layout``. Its backward pass
        goes on with NaN in ``out``, as they wait for its other units, and raises at its end as theirs do."""
        given, row = (torch.zeros(each.numel, dtype=out.dtype, device=out.device) for each in (layout, wanted))
        self.average(unit, Source(Bucket(given, layout)), Target(Bucket(row, wanted)), RuntimeError(why))
        out.fill_(float("nan"))

    def average(self, unit: Unit, source: Source, target: Target, error: Exception | None = None) -> None:
        """Averages one unit's gradients; the mean is in ``target`` when it returns, on a GPU on its current stream.
        ``error``: why there is nothing to average."""
        a, task = self.attachment, graph_task()
        if a.steps.open and unit.number in self._seen and self._complete:
            self._end()
        if self._layouts.get(unit.number) is not source.x.layout:
            self._meet(unit, source.x.layout)
        if not a.steps.open:
            kind = a.steps.pace.take(True, False)
            self._seen.clear()
            a.begin_step(kind is Kind.STEP)
        since = perf_counter()
        future = a.submit(source, target, now=True, error=error)
        self._seen.add(unit.number)
        self._over = self._nested = False
        if task != self._task:
            self._task = task
            once_over(self._finished)
        future.wait()
        if a.steps.current is not None:
            a.steps.current.waited += perf_counter() - since

    def detach(self) -> None:
        """Lets go of the model's modules."""
        for handle in self._handles:
            handle.remove()
        self.attachment.steps.before_asked = None

    def _meet(self, unit: Unit, layout: Layout) -> None:
        """Takes in what a unit brings for the first time, or since parameters were frozen or unfrozen."""
        setup = self.attachment.setup
        known = setup.elements
        mine = zip(unit.names, unit.parameters, strict=True)
        late = [(name, p) for name, p in mine if p.requires_grad and name not in known]
        for name, p in late:
            check_dtype(name, p.dtype)
        if late:
            setup.admit(late)
        self._layouts[unit.number] = layout
        setup.expect([now for now in map(self._brings, self._units) if now.segments])

    def _finished(self) -> None:
        """A backward pass, or one within it, is over."""
        self._task = -1
        if not self.attachment.steps.open:
            return
        if any(u.finishing for u in self._units):
            self._nested = True
            return
        self._over = True
        if self._seen >= self._expected or len({id(u.root) for u in self._units}) == 1:
            self._end()

    def _end(self) -> None:
        self._expected, self._over = set(self._seen), False
        self.attachment.end_step()

    @property
    def _complete(self) -> bool:
        """Whether all that was due has come, and FSDP has finished. Where activation checkpointing brought all units in
        passes of their own, nobody calls back at the end of the outer one; a pass that raised has left some out."""
        all_came = self._nested and self._seen >= self._expected and not any(u.finishing for u in self._units)
        return self._over or all_came

    def _asked(self) -> None:
        """State is asked for."""
        if self.attachment.steps.open and self._complete:
            self._end()

    @_torch._dynamo.disable
    def _forward(self, unit: Unit, module: nn.Module, inputs: object) -> None:
        """Before a unit's forward pass; in a backward pass it is recomputed, and nothing has ended."""
        a = self.attachment
        if graph_task() != -1:
            return
        a.check()
        if not self._rooted:
            self._find_root()
        unfinished = a.steps.open and not self._complete
        if unit.finishing or (unfinished and any(u.finishing for u in self._units)):
            raise RuntimeError(
                "the last backward pass raised, and fully_shard has not been told: it would reduce some units and "
                "leave others out. Call reset_iter_state() of the root module (torch 2.13 or later) on every rank."
            )
        if unfinished:
            a.abandon_step()
        elif a.steps.open:
            self._end()

    def _find_root(self) -> None:
        begun = [u for u in self._units if u.begun]
        self._rooted = bool(begun)
        late = strangers(self._model, self._units) if begun else []
        if late:
            self.attachment.detach()
            raise RuntimeError(
                f"attach: fully_shard has taken {late[0]!r}{f' and {len(late) - 1} more' * (len(late) > 1)} after "
                f"attach(...), and would send them whole. Call attach last. Nothing is attached now."
            )
        inside = set(self._model.modules()) if begun else set[nn.Module]()
        if any(module not in inside for u in begun for module in u.outermost):
            self.attachment.detach()
            raise RuntimeError(
                "attach: the model is a part of another module that fully_shard has taken too, which would be averaged "
                "apart from it. Give attach the outermost one. Nothing is attached now."
            )
