"""Descriptions: frozen values whose ``repr`` is the call that makes them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, is_dataclass

import torch

from ..core.description import Described, parse
from ..core.reducer import Reducer
from ..routes.choose import settle
from .errors import ContractError, demand


def is_its_own_call(d: Described) -> None:
    """``parse(repr(d)) == d``, and for a reducer so with its route settled."""
    forms: list[Described] = [d]
    if isinstance(d, Reducer):
        forms += [settle(d, world) for world in (1, 2, 5)]
    for form in forms:
        again = parse(repr(form))
        demand(type(again) is type(form) and again == form, d, f"parse(repr(x)) makes {again!r}, not x.")
        demand(repr(again) == repr(form), d, f"repr changes in a round trip: {again!r}.")


def is_a_value(d: Described) -> None:
    """A frozen dataclass, hashable, equal to its equals, and free of tensors."""
    demand(is_dataclass(d), d, "is no dataclass.")
    again = parse(repr(d))
    demand(hash(again) == hash(d), d, "equal descriptions have different hashes.")
    for f in fields(d):  # type: ignore[arg-type]
        demand(not isinstance(getattr(d, f.name), torch.Tensor), d, f"field {f.name} holds a tensor.")
        try:
            setattr(d, f.name, getattr(d, f.name))
        except FrozenInstanceError:
            continue
        raise ContractError(f"{d!r}: field {f.name} can be set: use @dataclass(frozen=True).")
