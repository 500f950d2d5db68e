"""The hook's schedule over the buckets of a step, played through with seconds.

It is that of ``compcomm.engine.scheduler``: one thread codes buckets in the order in which the backward pass brings
them; when bucket b has started its first collective, every older flow is waited for and taken to its next one; after
the last bucket this goes on until all are delivered. One wire carries one collective at a time, in the order in which
they start.
"""

from __future__ import annotations

from collections.abc import Sequence


def pipeline(
    arrivals: Sequence[float],
    stages: Sequence[Sequence[float]],
    wires: Sequence[Sequence[float]],
    native: bool = False,
    threaded: bool = True,
) -> list[float]:
    """When each bucket's mean is there, by the schedule above; the largest comes last.

    ``stages[b]``: seconds of every stage of bucket b, one more than ``wires[b]``, the seconds of its collectives.
    ``native``: a plain sum, which the next bucket need not wait for. ``threaded``: False where no thread of ours takes
    part, as in DDP alone.

    Two buckets, the second arriving while the first is on the wire: coded behind it, waiting for the wire, decoded.

    >>> pipeline([0.0, 1.0], [[1.0, 0.5], [1.0, 0.5]], [[4.0], [4.0]])
    [5.5, 9.5]
    """
    clock = free = 0.0
    ends, place, done = [0.0] * len(arrivals), [0] * len(arrivals), [-1.0] * len(arrivals)

    def advance(b: int) -> None:
        nonlocal clock, free
        if place[b]:
            clock = max(clock, ends[b])
        clock += stages[b][place[b]]
        if place[b] == len(wires[b]):
            done[b] = clock
            return
        free = max(clock, free) + wires[b][place[b]]
        ends[b] = free
        place[b] += 1

    for b, arrival in enumerate(arrivals):
        clock = max(clock, arrival)
        older = [f for f in range(b) if done[f] < 0]
        advance(b)
        for f in older:
            if threaded and (not native or ends[f] <= clock):
                advance(f)
    while any(d < 0 for d in done):
        for b in range(len(arrivals)):
            if done[b] < 0:
                advance(b)
    return sorted(done)


def stretch(stages: Sequence[float], wires: Sequence[float], took: float) -> float:
    """``took`` seconds in multiples of what this schedule makes of two equal buckets, both there at once: 1/2 to 3.

    >>> stretch([1.0, 1.0], [2.0], 9.0)
    1.5
    """
    due = pipeline([0.0, 0.0], [stages] * 2, [wires] * 2)[-1]
    return min(3.0, max(0.5, took / due)) if due > 0 else 1.0
