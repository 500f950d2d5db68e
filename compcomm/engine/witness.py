"""What becomes of the mean of a step: an optimizer takes it, or the script throws it away and the memory has it still.

Seen from one parameter of the pass's last bucket. After the pass its version and its gradient's are noted; when the
next pass brings its first bucket they are looked at again: a parameter that changed, or an optimizer of it that was
called, has had its step. Gradients that are gone were zeroed. Gradients that are as they were are being added to.
Optimizers are heard of by a hook that torch has for all of them. (Fused ones change parameters and no version; those of
frameworks may change a version and call no hook.) One thing is not seen: ``zero_grad(set_to_none=True)`` where all
gradients are views of one bucket (``gradient_as_bucket_view=True``); they may as well be added to. Nothing here costs
more than a few microseconds a step.
"""

from __future__ import annotations

import warnings
from enum import Enum
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .jobs import Step
from .pace import Pace


class Fate(Enum):
    """Of gradients that no optimizer took."""

    ZEROED = "zeroed"
    ADDED_TO = "added to"
    UNKNOWN = "one of these"


class Sample(NamedTuple):
    """A parameter after the pass of ``step``. ``alone``: where the pass had one bucket, how many parameters are in it;
    in the next one their gradients have already been added when the hook is called. Else 0."""

    step: Step
    parameter: Tensor
    version: int
    place: int
    written: int
    alone: int

    def moved(self) -> bool:
        """Whether something has written to the parameter."""
        return self.parameter._version != self.version

    def fate(self, flat: Tensor) -> Fate:
        """Of its gradient; ``flat`` is the first bucket of the next pass."""
        gradient = self.parameter.grad
        if gradient is None:
            return Fate.ZEROED
        if self.alone and gradient.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr():
            # It is a view of the bucket, also where it was None meanwhile. All views count their writes together.
            return Fate.ZEROED if gradient._version > self.written + self.alone else Fate.UNKNOWN
        same = gradient.data_ptr() == self.place and gradient._version == self.written + bool(self.alone)
        return Fate.ADDED_TO if same else Fate.ZEROED


class Witness:
    """Of one attachment, on one rank."""

    def __init__(self, pace: Pace) -> None:
        self.applied = False
        """Whether an optimizer was called since the pass of the last step began."""
        self._pace = pace
        self._parameter: Tensor | None = None
        self._sample: Sample | None = None
        self._seen = 0
        self._void: tuple[int, int] | None = None
        self._fate: tuple[Step, Fate] | None = None
        self._told: set[Fate] = set()
        self._known: WeakKeyDictionary[Any, tuple[int, int, bool]] = WeakKeyDictionary()
        _register(self)

    def look(self, flat: Tensor) -> None:
        """At the first bucket of a pass: what has become of the last step's mean?"""
        sample, self._sample, self._void = self._sample, None, None
        if sample is None:
            return  # what has been seen in an earlier pass of this step is to be told at its end
        self._fate = None
        if self.applied or sample.moved():
            self._seen += 1
        elif (
            self._seen > 1
        ):  # else steps are taken in some way that is not seen, and it was a checkpoint that was loaded
            self._fate = sample.step, sample.fate(flat)

    def keep(self, parameter: Tensor) -> None:
        """Which parameter to look at."""
        self._parameter = parameter

    def note(self, step: Step, alone: int) -> None:
        """The step's mean is in the gradients."""
        parameter, self._void = self._parameter, None
        gradient = None if parameter is None else parameter.grad
        if parameter is not None and gradient is not None:
            self._sample = Sample(step, parameter, parameter._version, gradient.data_ptr(), gradient._version, alone)

    def voided(self) -> None:
        """The last step's mean was taken back: whoever takes it now applies what will come again."""
        self.drop()
        gradient = None if self._parameter is None else self._parameter.grad
        self._void = None if gradient is None else (gradient.data_ptr(), gradient._version)

    def drop(self) -> None:
        """The last step's mean is none that should have been taken."""
        self._sample = self._fate = self._void = None

    def called(self, optimizer: Any) -> None:
        """An optimizer is about to step."""
        if self._parameter is not None and self._holds(optimizer, self._parameter):
            gradient, name = self._parameter.grad, type(optimizer).__name__
            if self._void and gradient is not None and self._void == (gradient.data_ptr(), gradient._version):
                raise RuntimeError(
                    f"{name}.step() after hook.discard(): the gradients are still the mean that was taken back, and "
                    f"counts as never averaged. Call {name}.zero_grad() after hook.discard()."
                )
            self.applied = True
            if self._pace.done:
                raise RuntimeError(
                    f"{name}.step() after {self._pace.done} of hook.passes = {self._pace.passes} backward passes: the "
                    f"gradients are this rank's own yet. Before the last pass of a shorter step, say how many it has "
                    f"(hook.passes = {self._pace.done}); to give these up, hook.discard() and zero_grad()."
                )

    def outcome(self) -> Fate | None:
        """What has become of a mean that an optimizer should have taken; once. Whether a step was bad, so that its mean
        is NaN and memory has nothing of it, a device may say long after the next one has begun: until then, None."""
        if self._fate is None or self._fate[0].bad is None:
            return None
        (step, fate), self._fate = self._fate, None
        return None if step.bad else fate

    def speak(self, fate: Fate, reducer: Any) -> None:
        """Says, once each, what memory has of gradients that were thrown away, or added up."""
        harmless = fate in (Fate.ADDED_TO, Fate.UNKNOWN) and reducer.traits.accumulates
        if harmless or fate in self._told or not reducer.traits.stateful:
            return
        self._told.add(fate)
        lines = {Fate.ZEROED: (_ZEROED,), Fate.ADDED_TO: (_ADDED,), Fate.UNKNOWN: (_ZEROED, "Or", _ADDED)}[fate]
        warnings.warn(f"compcomm: {reducer!r}: {' '.join(lines)}", UserWarning, stacklevel=2)

    def _holds(self, optimizer: Any, parameter: Tensor) -> bool:
        """Whether it steps that parameter; looked up once."""
        groups = optimizer.param_groups
        known = self._known.get(optimizer)
        if known is None or known[:2] != (id(parameter), len(groups)):
            held = any(p is parameter for group in groups for p in group["params"])
            self._known[optimizer] = known = id(parameter), len(groups), held
        return known[2]


_ZEROED = (
    "the gradients of the last backward pass were zeroed before any optimizer took them, and the reducer's memory "
    "still has a part of them, which later steps will bring. Where a step is skipped call hook.discard() "
    "(cc.attach(..., discardable=True)); run a pass that is not this model's own, such as a generator's through its "
    "discriminator, inside `with hook.ignoring():`."
)
_ADDED = (
    "two backward passes added up their gradients with no optimizer step in between. Each pass is a step to this "
    "reducer, and the sum of what it gives is not the mean of the sum. Say how many passes make a step "
    "(hook.passes = 2, ...), or run all but the last under model.no_sync()."
)

_witnesses: WeakSet[Witness] = WeakSet()


def _register(witness: Witness) -> None:
    if not _witnesses and not getattr(_register, "on", False):
        register_optimizer_step_pre_hook(_called)
        _register.on = True  # pyright: ignore[reportFunctionMemberAccess]
    _witnesses.add(witness)


def _called(optimizer: Any, args: Any, options: Any) -> None:
    if torch.compiler.is_compiling():
        return  # a compiled step changes the version of its parameters
    for witness in list(_witnesses):
        witness.called(optimizer)
