"""The one number of a method that trades bytes for error: a density, a number of bits, a rank."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from ..core.compressor import Compressor
from ..core.reducer import Reducer
from .uncompensated import Uncompensated
from .wrapper import Wrapper

NOUNS = {"ratio": "density", "bits": "bits", "rank": "rank"}
"""What a tunable field is called."""


def owner(part: Any) -> Any:
    """The compressor or reducer within ``part`` (or itself) that has a tunable field, None where there is none."""
    while part is not None and not _tunable(part):
        part = _inside(part)
    return part


def field(part: Any) -> str:
    """The tunable field, "ratio", "bits" or "rank"; "" where there is none or it is not in use (``TopK(k=10)``)."""
    found = owner(part)
    name = "" if found is None else _tunable(found)
    return name if name and getattr(found, name) is not None else ""


def _tunable(part: Any) -> str:
    return getattr(part, "tunable", "")


def setting(call: str, part: Any) -> float:
    """The value of the tunable field of ``part``.

    Raises:
        ValueError: it has none.

    >>> import compcomm as cc
    >>> setting("doctest", cc.ErrorFeedback(cc.TopK(ratio=0.01)))
    0.01
    """
    found = field(part)
    if found:
        return getattr(owner(part), found)
    hint = "Use TopK(ratio=0.01), RandK(ratio=0.01), QSGD(bits=4), MinMax(bits=5) or PowerSGD(rank=4), with or without"
    raise ValueError(f"{call}: {part!r} has no density, bits or rank to choose. {hint} a route or feedback around it.")


@lru_cache(maxsize=4096)
def tuned(part: Any, value: float) -> Any:
    """``part`` with its tunable field at ``value``: the same route, feedback and options.

    Raises:
        ValueError: the method has no such form.

    >>> import compcomm as cc
    >>> tuned(cc.ErrorFeedback(cc.TopK(ratio=0.01)), 0.5)
    ErrorFeedback(TopK(ratio=0.5))
    """
    found = field(part)
    whole = found != "ratio" and value == int(value)
    return with_owner(part, replace(owner(part), **{found: int(value) if whole else float(value)}))


def with_owner(part: Any, new: Any) -> Any:
    """``part`` with another compressor or reducer in the place of the ``owner`` of its tunable field."""
    if part is owner(part):
        return new
    name = "compressor" if isinstance(getattr(part, "compressor", None), Compressor) else "reducer"
    return replace(part, **{name: with_owner(getattr(part, name), new)})


def _inside(part: Any) -> Compressor | Reducer | None:
    for name in ("compressor", "reducer"):
        inner = getattr(part, name, None)
        if isinstance(inner, Compressor | Reducer):
            return inner
    return None


def _chooses(part: Any) -> bool:
    """Whether it is a wrapper that decides with which form of what is inside a step runs."""
    return isinstance(part, Wrapper) and not isinstance(part, Uncompensated)


def refuse_inner(call: str, part: Any) -> None:
    """Raises ValueError where ``part`` has a wrapper inside that sets the same field, or takes no notice of it."""
    inner = part
    while isinstance(inner, Reducer) and not _chooses(inner):
        if getattr(inner, "warmup", 0):
            raise ValueError(
                f"{call}: {inner!r} warms up, so there would be two schedules of one density. Use warmup=0."
            )
        inner = getattr(inner, "reducer", None)
    if _chooses(inner):
        raise ValueError(
            f"{call}: {part!r} has a wrapper inside that chooses too. Leave one of them out; Warmup goes outside."
        )
