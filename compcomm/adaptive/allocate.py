"""A setting for each layer: the fewest bytes within an error, or the least error within so many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .knapsack import cheapest, most

Choice = NDArray[np.int64]
ROUNDING = 1e-12
"""The share by which a sum of errors may exceed a budget that its caller summed in floats."""


def allocate(
    errors: Any, sizes: Any, *, budget: float, reference: Sequence[int] | Choice | None = None, buckets: int = 10_000
) -> Choice:
    """Positions c [m] that minimise sum_l sizes[l, c_l] subject to sum_l errors[l, c_l] <= budget.

    Errors are counted from each layer's least and rounded up to whole buckets; ``buckets`` of them are what the budget
    leaves above the sum of the least. Rounding up wastes half a bucket per layer, so the table goes on for m buckets
    more, where every choice within the budget has its place: the errors of what it names there are summed anew, and
    the smallest that is within the budget is taken. So it is never over the budget, and never larger than
    ``reference``, which is returned where nothing smaller is found.

    Equal sizes: the choice of less error, then less rounded error from the last layer on, then the lower positions.
    Sums are rounded once (``math.fsum``) and the table is of integers, so every machine finds the same.

    Source: Markov, Alimohammadi, Frantar, Alistarh 2022 (arXiv:2210.17357), Algorithm 1. Theirs rounds whole errors and
    ends at the last bucket, so what it finds can be larger than one setting for all.

    Args:
        errors: [m, P], L2 norms (not squared), 0 or more; what is NaN or infinite is not to be chosen.
        sizes: [m, P], bytes, integers from 0 to 2**53.
        budget: in the errors' unit; infinite is allowed.
        reference: [m], a choice within the budget, such as one setting for all. It may be over by 1e-12 of the budget:
            a sum's rounding.
        buckets: time is that of 2 m P buckets additions, memory m buckets bytes.

    Raises:
        ValueError: no choice is within the budget; ``reference`` is not; or an argument is none.

    >>> allocate([[3.0, 1.0, 0.0], [4.0, 2.0, 0.0]], [[1, 2, 4], [10, 20, 40]], budget=5.0)
    array([1, 0])
    """
    return _choose(f"allocate(budget={budget!r})", errors, sizes, budget, reference, buckets, dual=False)


def allocate_bytes(
    errors: Any, sizes: Any, *, limit: int, reference: Sequence[int] | Choice | None = None, buckets: int = 10_000
) -> Choice:
    """Positions c [m] that minimise sum_l errors[l, c_l] subject to sum_l sizes[l, c_l] <= limit, in bytes.

    ``allocate`` with errors and sizes exchanged, and with its promises: to the byte within the limit, as ``reference``
    must be, and never more error than that. The table compares errors to 2**-50 of their span or so.

    Raises:
        ValueError: no choice is within the limit; ``reference`` is not; or an argument is none.

    >>> allocate_bytes([[3.0, 1.0, 0.0], [4.0, 2.0, 0.0]], [[1, 2, 4], [10, 20, 40]], limit=24)
    array([2, 1])
    """
    return _choose(f"allocate_bytes(limit={limit!r})", errors, sizes, limit, reference, buckets, dual=True)


def _choose(call: str, errors: Any, sizes: Any, limit: Any, reference: Any, buckets: int, dual: bool) -> Choice:
    errors, sizes = _checked(call, errors, sizes, limit, buckets)
    usable = np.isfinite(errors)
    m = len(errors)
    weights, values = (sizes, errors) if dual else (errors, sizes)
    start = np.lexsort((values, weights, ~usable), axis=1)[:, 0] if m else np.zeros(0, np.int64)
    least = _total(weights, start)
    allowed = limit if dual else limit * (1 + ROUNDING)
    if least > allowed:
        raise ValueError(f"{call}: no choice is within it. The smallest that can be met is {least!r}.")
    lightest = weights[np.arange(m), start]
    if reference is not None:
        start = _reference(call, reference, usable)
        if (total := _total(weights, start)) > allowed:
            raise ValueError(f"{call}: the reference is not within it, at {total!r}. Give one that is, or None.")
        limit = max(limit, total)
    if not m:
        return start

    room = max(0, limit - least)
    excess = np.where(usable, weights - lightest[:, None], np.inf)
    with np.errstate(all="ignore"):
        steps = np.where(excess > 0, np.ceil(excess / room * buckets), 0.0)
    steps[~usable] = np.inf
    order, counts = _undominated(steps, values, excess, buckets)
    costs = _whole(np.take_along_axis(values, order, 1), counts)
    whole = [steps[i, order[i, :n]].astype(np.int64).tolist() for i, n in enumerate(counts)]
    table = cheapest(whole, [costs[i, :n].tolist() for i, n in enumerate(counts)], buckets - 1, buckets + m)
    best: tuple[Any, Any] | None = None
    found = start
    for choice in np.take_along_axis(order, table, 1).T[::-1]:  # from the largest capacity on: in the order of cost
        key = _total(values, choice), _total(weights, choice)
        if key[1] <= limit and (best is None or key < best):
            best, found = key, choice
        elif best is not None and key[0] > best[0]:
            break
    return found.copy() if best is not None and best[0] < _total(values, start) else start


def _undominated(
    steps: NDArray[np.float64], values: Any, excess: NDArray[np.float64], buckets: int
) -> tuple[Choice, list[int]]:
    """Positions, those first [counts] that fit and that no other beats in both: steps ascend and values descend."""
    order = np.lexsort((excess, values, steps), axis=1)
    by_steps = np.take_along_axis(values, order, 1)
    kept = np.take_along_axis(steps, order, 1) <= buckets
    kept[:, 1:] &= by_steps[:, 1:] < np.minimum.accumulate(by_steps, axis=1)[:, :-1]
    first = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(order, first, 1), kept.sum(axis=1).tolist()


def _whole(values: Any, counts: list[int]) -> NDArray[np.int64]:
    """Values above the least of each layer's first ``counts``; errors in units that make them large integers."""
    m, longest = values.shape
    counted = np.arange(longest) < np.asarray(counts)[:, None]
    least = values[np.arange(m), np.asarray(counts) - 1]  # values descend
    above = np.where(counted, values, least[:, None]) - least[:, None]
    if above.dtype.kind == "f" and above.max() > 0:
        above = np.rint(above / above.max() * (most(max(counts)) // (2 * m)))
    return above.astype(np.int64)


def _total(table: Any, choice: Choice) -> Any:
    """The sum of a choice: of integers as an integer, of floats rounded once."""
    chosen = table[np.arange(len(table)), choice].tolist()
    return fsum(chosen) if table.dtype.kind == "f" else sum(chosen)


def _checked(call: str, errors: Any, sizes: Any, limit: Any, buckets: int) -> tuple[NDArray[np.float64], Choice]:
    """Errors with infinity for what is not available, and sizes."""
    e, s = np.array(errors, np.float64), np.asarray(sizes)
    if not (e.ndim == 2 or e.size == 0) or e.shape != s.shape or (len(e) and not e.size):
        raise ValueError(f"{call}: errors {e.shape} and sizes {s.shape} must be two tables [layers, candidates].")
    e, s = (e, s) if e.ndim == 2 else (np.zeros((0, 1)), np.zeros((0, 1), np.int64))
    if s.size and (s.dtype.kind not in "iu" or s.min() < 0 or s.max() > 1 << 53):
        raise ValueError(f"{call}: sizes are bytes, integers from 0 to 2**53.")
    if np.any(e < 0):
        raise ValueError(f"{call}: errors are norms, and {e[e < 0][0]} is negative.")
    e[np.isnan(e)] = np.inf
    if len(lost := np.flatnonzero(np.isinf(e).all(axis=1))):
        raise ValueError(f"{call}: layer {lost[0]} has no candidate of finite error.")
    if not limit >= 0:
        raise ValueError(f"{call}: a number, 0 or more.")
    if buckets < 1:
        raise ValueError(f"{call}: buckets={buckets!r} is not a positive number of buckets.")
    return e, s.astype(np.int64)


def _reference(call: str, reference: Any, usable: NDArray[np.bool_]) -> Choice:
    """One available position per layer."""
    found = np.array(reference, np.int64)
    m, options = usable.shape
    if found.shape != (m,) or not all(0 <= c < options and usable[i, c] for i, c in enumerate(found.tolist())):
        raise ValueError(f"{call}: reference={reference!r} is not a position of finite error for each of {m} layers.")
    return found
