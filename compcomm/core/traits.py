"""What a reducer can do, as one value: computed once, when it is settled, and never on the way of a bucket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

ALWAYS = 1 << 62
"""``in_dtype`` of what is one plain sum in every step."""


class Traits(NamedTuple):
    """Traits of a reducer. A wrapper's are those of what is inside, combined, unless its class says otherwise."""

    half: bool = False
    """Buckets in bfloat16 and float16 may come as they are, where kernels read them so; else through fp32."""
    in_dtype: int = 0
    """Steps before this one are one plain sum of the bucket in its own dtype."""
    weights: bool = False
    """It heeds ``Context.weights``."""
    absence: bool = False
    """Ranks may sit a step out (``Context.participating``)."""
    stateful: bool = False
    """A bad step leaves something to undo."""
    variable: bool = False
    """Messages may be shorter than a dry run lists, which then lists their capacity."""
    named: bool = False
    """It treats parameters by their names, so that a host must know them first."""
    accumulates: bool = True
    """Several backward passes may make one optimizer step, each of them averaged: what they deliver then adds up, with
    what is remembered, to the mean of the sum of their gradients."""


class Promises(NamedTuple):
    """What holds of one parameter."""

    delta: float | None = None
    """The contraction of what is not sent: sum of errors <= (1 - delta)|x|^2; None: no promise."""
    conserves: bool = True
    """The mean is that of exactly what the ranks count as sent, owners' residuals included: under feedback nothing of
    this parameter is then ever lost."""


def weakest(found: Sequence[Promises]) -> Promises:
    """What holds whichever of several forms runs."""
    deltas = [p.delta for p in found if p.delta is not None]
    return Promises(min(deltas) if len(deltas) == len(found) else None, all(p.conserves for p in found))


def combined(inside: Iterable[Traits]) -> Traits:
    """The traits of what only passes on: it can what all its parts can, and needs what any of them needs."""
    every = tuple(inside)
    if not every:
        return Traits()
    return Traits(
        half=all(t.half for t in every),
        in_dtype=min(t.in_dtype for t in every),
        weights=all(t.weights for t in every),
        absence=all(t.absence for t in every),
        stateful=any(t.stateful for t in every),
        variable=any(t.variable for t in every),
        named=any(t.named for t in every),
        accumulates=all(t.accumulates for t in every),
    )
