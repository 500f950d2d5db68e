"""Intervals that grow: ZeroOneAdam refreshes its variance, and then synchronises, ever more rarely."""

from __future__ import annotations


def refresh_interval(refreshes: int, scaler: int) -> int:
    """Steps from one refresh of the variance to the next, after so many of them: 1, doubled after every ``scaler``.

    >>> [refresh_interval(n, 2) for n in range(6)]
    [1, 1, 2, 2, 4, 4]
    """
    return 1 << refreshes // scaler


def synchronises(k: int, scaler: int, clipper: int) -> bool:
    """Whether the ranks synchronise in step ``k`` after the freeze, counted from 1: the interval doubles every
    ``scaler`` steps, up to ``clipper``.

    >>> [k for k in range(1, 17) if synchronises(k, 4, 4)]
    [1, 2, 3, 4, 6, 8, 12, 16]
    """
    doublings = min((k - 1) // scaler, clipper.bit_length())
    return k % min(clipper, 1 << doublings) == 0


def check_count(name: str, value: object) -> None:
    """Raises ValueError for what is no number of steps."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        what = {
            "freeze": "the number of steps before the variance is frozen; its growth, which 'auto' would follow, says "
            "little once it is refreshed rarely",
            "var_update_scaler": "refreshes before their interval doubles, such as 16",
            "local_step_scaler": "steps before the interval between synchronisations doubles, such as 1000",
            "local_step_clipper": "steps from one synchronisation to the next at most, such as 16",
        }[name]
        raise ValueError(f"ZeroOneAdam({name}={value!r}): an integer, 1 or more: {what}.")
