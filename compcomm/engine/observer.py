"""What hears of a session's steps from beside: what picks the reducer, what compares the replicas, a user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .running_flow import RunningFlow


class Observer:
    """Put into ``session.observers``, on every rank alike and in the same order. Each call does nothing here."""

    def after_step(self, flows: Sequence[RunningFlow], exposed: float) -> None:
        """A step is over, whose flows these were; the host waited ``exposed`` seconds for it. In the thread that starts
        the collectives, before the next step's first: it may start some of its own on ``session.steps.transport``,
        the same on every rank. What it raises ends the training, on this rank at once."""

    def saved(self) -> Mapping[str, Any]:
        """What it adds to a checkpoint: entries that no other observer has, of values that any format can hold."""
        return {}

    def agreed(self) -> Mapping[str, Any]:
        """What must be equal on all ranks, as JSON can hold it, where a checkpoint is loaded."""
        return {}

    def restoring(self, saved: Any, here: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Surrounds the loading of a checkpoint whose content is ``saved``: it makes itself what it was, and is as it
        is now again if loading fails. ``here``: what this run says of itself; where the checkpoint says something else,
        loading will refuse it."""
        return nullcontext()
