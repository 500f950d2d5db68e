"""Contracts as the last version had them: what was written for those goes on for one version, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any

OF_COMPRESSORS = {
    "grain": "alignment",
    "cure": "hint",
    "knob": "tunable",
    "tabled": "per_row_k",
    "selective": "sends_values",
    "recodes": "reencodes",
    "recode_rows": "reencode_rows",
    "undeal_rows": "scatter_rows",
    "small": "dense_below",
}
"""What a compressor declared, and declares now."""
OF_REDUCERS = {
    "stateful": "stateful",
    "variable": "variable",
    "accumulates": "accumulates",
    "narrow": "half",
    "weighs": "weights",
    "absence": "absence",
    "needs_names": "named",
}
"""What a reducer was asked, and where its traits say it now."""


def _delta(reducer: Any, segment: Any) -> Any:
    return reducer.promises(segment).delta


def _conserves(reducer: Any, segment: Any) -> Any:
    return reducer.promises(segment).conserves


def _native(reducer: Any, step: int) -> Any:
    return step < reducer.traits.in_dtype


METHODS: dict[str, tuple[str, Callable[..., Any]]] = {
    "delta": ("promises(segment).delta", _delta),
    "conserves": ("promises(segment).conserves", _conserves),
    "native": ("step < traits.in_dtype", _native),
}
"""What a reducer's method was, and how it is asked now."""


def declared(cls: type) -> None:
    """Gives a compressor's class what it declares under a former name, under today's."""
    for old, now in OF_COMPRESSORS.items():
        if old in vars(cls):
            warnings.warn(
                f"{cls.__name__}.{old} is now {now}; the old name goes with the next version.", FutureWarning, 4
            )
            setattr(cls, now, vars(cls)[old])


def asked(owner: object, name: str, names: dict[str, str], place: str = "") -> Any:
    """For ``__getattr__``: what ``owner`` has under today's name, with a warning; AttributeError as usual."""
    now = names.get(name)
    if now is None:
        return object.__getattribute__(owner, name)  # says what is missing, inside a property too
    found = getattr(getattr(owner, place) if place else owner, now)
    path = f"{place}.{now}" if place else now
    warnings.warn(
        f"{type(owner).__name__}.{name} is now {path}; the old name goes with the next version.", FutureWarning, 3
    )
    return found


def without_source(cls: type) -> None:
    """A reducer written before ``Source`` and ``Target`` is refused where its class is made, not in the first step.

    Raises:
        TypeError: its ``reduce`` takes a bucket.
    """
    own = vars(cls).get("reduce")
    if callable(own) and {"add", "out_scale"} & set(signature(own).parameters):
        raise TypeError(
            f"{cls.__name__}.reduce(x, out, state, ctx, *, add, ...) is now reduce(source, target, state, ctx): "
            f"source is Source(x, add, decay, add_scale), target is Target(out, scale, accumulate)."
        )


def renamed_attribute(owner: object, old: str, now: str) -> Any:
    """What a class that was written for the last version calls ``old``, with a warning; None: it has no such."""
    found = getattr(owner, old, None)
    if found is not None:
        warnings.warn(
            f"{type(owner).__name__}.{old} is now {now}; the old one goes with the next version.", FutureWarning, 3
        )
    return found


def without_find(cls: type) -> None:
    """A compressor written for the last version is not told how to find segments: its overrides get what they know."""
    for name, count in (("encode_rows", 4), ("decode_rows", 7), ("zero_rows", 4)):
        old = vars(cls).get(name)
        if not callable(old):
            continue
        takes = signature(old).parameters.values()
        if len(takes) > count + 1 or any(p.kind is Parameter.VAR_POSITIONAL for p in takes):
            continue
        warnings.warn(
            f"{cls.__name__}.{name} has one more argument now, find; without it, it goes with the next version.",
            FutureWarning,
            4,
        )
        setattr(cls, name, _called_without_the_last(old, count))


def _called_without_the_last(old: Callable[..., Any], count: int) -> Callable[..., Any]:
    @wraps(old)
    def call(self: Any, *args: Any) -> Any:
        return old(self, *args[:count])

    return call


def former(method: str, now: str, call: Callable[..., Any], *classes: type) -> None:
    """Keeps a method that has become a function: it calls that, with a warning that says so."""

    def old(self: Any, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            f"{type(self).__name__}.{method} is now {now}; the method goes with the next version.", FutureWarning, 2
        )
        return call(self, *args, **kwargs)

    old.__name__ = method
    for known in classes:
        setattr(known, method, old)
