"""What ``attach`` gives to a user: a session, and the calls that a training script makes between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from difflib import get_close_matches
from typing import Any

from ..adaptive.telemetry import Telemetry
from ..core.state import StateError
from ..core.transport import Transport
from .pace import NOTHING, Kind
from .saved import Portable
from .session import Session
from .statistics import Counters, Report
from .witness import Witness


class Attachment(Session):
    """A reducer at work. Made by ``attach``; every method concerns this rank alone unless it says otherwise.

    ``enabled``: set it to False, on every rank at the same step, to average exactly for a while; residuals are kept.
    """

    witness: Witness | None = None
    """What sees whether optimizers take the means, where the host has parameters with gradients."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Settings are changed by assignment: once __init__ is over, a misspelt one must not pass for something new.
        if not hasattr(self, name) and "_accepted" in self.__dict__:
            kind = type(self)
            settings = [n for n in dir(kind) if isinstance(p := getattr(kind, n), property) and p.fset is not None]
            near = get_close_matches(name, settings, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"It has {' and '.join(settings)}."
            raise AttributeError(f"{name} = {value!r}: {type(self).__name__} has no such setting. {hint}")
        super().__setattr__(name, value)

    def report(self) -> Report:
        """What was sent, what it cost and what it lost, by the steps that are over."""
        return self.statistics.report()

    def counters(self) -> Counters:
        """What has been sent and how long it took: sums, at once, while a step's review may still go on."""
        return self.statistics.counters()

    def errors(self) -> dict[str, float | None]:
        """A report's ``relative_error``, alone. It decodes what the last step sent: some passes over the gradient."""
        return self.statistics.errors()

    @property
    def elements(self) -> dict[str, int]:
        """The size of each parameter; before parameters have names, of those that have been in a bucket."""
        return self.setup.elements

    @property
    def wire(self) -> Transport:
        """The transport, at once, while a step may be under way."""
        return self.steps.transport

    @property
    def dense_bytes(self) -> int:
        """What a rank would send per step without compression, in fp32; at once, as ``wire``."""
        return self.statistics.dense_bytes

    def scheduled(self) -> dict[str, float]:
        """What schedules alone give in the next step; at once, while a step's review may still go on."""
        return self.statistics.scheduled()

    def choices(self) -> dict[str, float]:
        """The setting of the next step by parameter: the density, the bits or the rank that a controller chose or a
        schedule gives. Empty where there is neither."""
        return self.statistics.choices()

    def telemetry(self) -> list[Telemetry]:
        """What each controller measured last, the same on every rank: the norm of every parameter's gradient, and the
        error and the bytes of every setting that it may have."""
        return self.statistics.telemetry()

    def state_dict(self) -> dict[str, Any]:
        """This rank's state, exact: tensors, integers and strings. Save every rank's.

        All of it lies under one key, "rank 2 of 4": ``torch.distributed.checkpoint`` keeps one of several equal keys.

        Raises:
            StateError: parameters have no names yet: ``bind(model)`` first; or a backward pass has not ended.
        """
        return self.state.save()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes bit for bit from this rank's ``state_dict``; what other ranks saved may lie beside it. Collective:
        every rank calls it, between the same two steps.

        Raises:
            StateError: on every rank, where on one of them it is of another reducer, rank, number of ranks, seed, step
                or model, or parameters have no names yet. On this rank alone, where its backward pass has not ended:
                collectives are under way then, and no other can be told. The running state is unchanged.
        """
        self.state.load("load_state_dict", state, merged=False)

    def portable_state_dict(self) -> dict[str, Any]:
        """The state of all ranks, merged: for another number of workers. Collective: call it on every rank, at the same
        step; every rank gets the same.

        Keys: "version", "reducer", "seed", "step", and "slots", ``{slot: {parameter: tensor}}``: residuals become their
        mean over the ranks, and what owners still owe is added to it (``compcomm.state.merging`` has the rules). It
        knows nothing of ranks and buckets. Never more than two copies of the state are in memory, this one and the
        running.

        Raises:
            StateError: parameters have no names yet: ``bind(model)`` first; or a backward pass has not ended.
            AgreementError: another rank cannot, or is at another step.
        """
        return self.state.save_merged()

    def load_portable_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from a ``portable_state_dict`` of any number of workers: every rank takes its part. Collective:
        every rank calls it, between the same two steps, with the same state.

        Raises:
            StateError: on every rank, where on one of them it is of another reducer, seed or model, or parameters have
                no names yet. On this rank alone, where its backward pass has not ended: collectives are under way
                then, and no other can be told. The running state is unchanged.
        """
        self.state.load("load_portable_state_dict", state, merged=True)

    @property
    def portable(self) -> Portable:
        """The portable state as an object with ``state_dict`` and ``load_state_dict``, for frameworks that save one
        rank's answer: ``accelerator.register_for_checkpointing(hook.portable)``."""
        return Portable(self)

    @property
    def passes(self) -> int:
        """How many backward passes make a step, 1 at first. With ``hook.passes = K`` gradients of the first K - 1
        passes add up locally and nothing is sent; the K-th averages the sum, as if the others had run under
        ``no_sync()``. Set it between two optimizer steps, on every rank."""
        return self.steps.pace.passes

    @passes.setter
    def passes(self, value: int) -> None:
        self.steps.pace.passes = value

    def ignoring(self, average: bool = True) -> AbstractContextManager[None]:
        """``with hook.ignoring(): loss.backward()``: a pass that memory does not hear of, on every rank the same.

        Its gradients are averaged exactly; with ``average=False`` they stay this rank's own, and nothing is sent.
        Memory, the step's number and what is drawn at random are as if there had been no such pass. For gradients that
        are thrown away, as those of a discriminator when its generator learns.
        """
        return self.steps.pace.ignoring(average)

    def discard(self) -> None:
        """Takes back what the last backward pass put into memory, bit for bit: as if the pass had not been. For a step
        that the script skips. Local, nothing is sent: call it on every rank, after the pass and before the next one;
        the mean that was delivered is void, so zero the gradients.

        A reducer that remembers needs ``attach(..., discardable=True)``: that keeps a copy of memory from before the
        step. A pass that memory heard nothing of (``ignoring()``, the first of several ``passes``) has nothing to take
        back, and the gradients of a step that is not complete are given up. Only the last pass can be taken back.

        Raises:
            StateError: nothing is left to take back: no pass has been averaged since attach, load_state_dict,
                reset_state, rescale_error, bind or the last discard; or its mean went to an optimizer; or memory was
                not kept; or a backward pass has not ended.
        """
        self.steps.between("discard")
        self.check()
        pace, witness = self.steps.pace, self.witness
        if pace.last is None:
            raise StateError(NOTHING)
        if pace.last is Kind.STEP:
            self.state.take_back(applied=witness is not None and witness.applied)
            if witness is not None:
                witness.voided()
        if pace.last in (Kind.STEP, Kind.PART):
            pace.restart()
        pace.last = None

    def reset_state(self) -> None:
        """Memory begins anew, as at attach. Local; call it on every rank at the same step.

        Raises:
            StateError: a backward pass has not ended.
        """
        self.state.reset()

    def rescale_error(self, old_lr: float, new_lr: float) -> None:
        """Says that the learning rate goes from ``old_lr`` to ``new_lr``, before the next step. Local: nothing is sent;
        call it on every rank at the same step.

        Residuals hold gradients, and what they will move the parameters by is the learning rate times that. With a new
        rate they would move them by another amount than at the time when they were held back. This multiplies every
        slot that is declared ``pending`` by old_lr/new_lr, so that what is still to be applied keeps its size: error
        feedback is then the published form, which keeps rate times gradient (the rate inside the memory). Without it a
        schedule's change scales what is pending too: a small and usual deviation.

        Pending are the residuals of ``ErrorFeedback`` and ``PowerSGD``, ``EControl``'s error, ``DGC``'s velocity and
        what their owners keep. Estimates of the gradient itself, as EF21 keeps, are not, and stay as they are.

        Raises:
            ValueError: a rate is not a positive number.
            StateError: a backward pass has not ended.
        """
        self.state.rescale(old_lr, new_lr)

    def detach(self) -> None:
        """Stops the worker. A step that is under way is given up; the model needs a new DDP(...) to train on."""
        self.close()
