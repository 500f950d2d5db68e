"""How generators of collectives are run: over a transport, in lockstep in one process, or on paper.

What reducers, controllers and merging yield are collectives; nobody needs more than ``next`` to go on. Only a Commit is
answered with something, whether the step is undone; ``next`` answers it with None, which is "no".
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

from .collectives import Collective, Commit
from .transport import Transport

T = TypeVar("T")


def drive(
    flow: Generator[Collective, Any, T],
    transport: Transport,
    *,
    starting: Callable[[Collective], object] | None = None,
    bad: Callable[[], bool] = bool,
) -> T:
    """Runs a flow to its end, one collective after the other, and returns what it returns.

    ``starting`` hears of every collective before it starts; a Commit is answered with ``bad()``.

    Raises:
        TransportError: the transport is lost.
    """
    try:
        op = next(flow)
        while True:
            if isinstance(op, Commit):
                op = flow.send(bad())
                continue
            if starting is not None:
                starting(op)
            transport.start(op).wait()
            op = next(flow)
    except StopIteration as end:
        return end.value


class OutOfStepError(RuntimeError):
    """Ranks that should yield the same sequence of collectives do not."""


def lockstep(flows: Sequence[Generator[Collective, Any, T]]) -> Generator[list[Collective], None, list[T]]:
    """All ranks' flows in one process: each round's collectives, one per rank, for the caller to perform; in the end
    what the flows returned.

        for ops in lockstep(flows):
            perform(ops)

    A round of Commits comes too. Whoever leaves the loop there finds every flow standing at its Commit.

    Raises:
        OutOfStepError: ranks yield different collectives, or one ends before the others.
    """
    while True:
        ops: list[Collective] = []
        ends: list[T] = []
        for flow in flows:
            try:
                ops.append(next(flow))
            except StopIteration as end:
                ends.append(end.value)
        if not ops:
            return ends
        if ends or len({op.signature for op in ops}) != 1:
            at_end = [f"{len(ends)} at the end"] if ends else []
            raise OutOfStepError(f"the ranks yield different collectives: {[op.signature for op in ops] + at_end}")
        yield ops


def in_groups(
    flows: Sequence[Generator[Collective, Any, T]], group: Callable[[int, Collective], tuple[int, ...]]
) -> Generator[tuple[tuple[int, ...], list[Collective]], None, list[T]]:
    """``lockstep``, where a collective is among some of the ranks, ``group(rank, op)``, and a Commit among all."""
    ops: list[Collective | None] = [None] * len(flows)
    ends, everyone = dict[int, T](), tuple(range(len(flows)))

    def go_on(members: tuple[int, ...]) -> None:
        for rank in members:
            ops[rank] = None
            try:
                ops[rank] = next(flows[rank])
            except StopIteration as end:
                ends[rank] = end.value

    def members(rank: int) -> tuple[str, tuple[int, ...]]:
        op = ops[rank]
        if op is None:
            return "", ()
        return op.axis, everyone if isinstance(op, Commit) else group(rank, op)

    go_on(everyone)
    while len(ends) < len(flows):
        moved = False
        for rank in everyone:
            axis, found = members(rank)
            if not found or any(members(m) != (axis, found) for m in found):
                continue  # some of them stand at another collective, which comes first
            taken = [op for op in (ops[m] for m in found) if op is not None]
            if len({op.signature for op in taken}) != 1:
                raise OutOfStepError(f"the ranks yield different collectives: {[op.signature for op in taken]}")
            yield found, taken
            go_on(found)
            moved = True
        if not moved:
            raise OutOfStepError(f"the ranks wait for each other: {[op and op.signature for op in ops]}")
    return [ends[rank] for rank in everyone]


def rehearse(flow: Generator[Collective, Any, Any]) -> Iterator[Collective]:
    """The collectives of a flow up to its Commit, none of which is performed: for flows on tensors without content."""
    try:
        for op in flow:
            if isinstance(op, Commit):
                return
            yield op
    finally:
        flow.close()
