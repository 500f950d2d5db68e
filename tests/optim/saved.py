"""What an optimizer's checkpoint has of ours, for tests to look at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def ours(document: Any) -> Any:
    """What lies in the first group: numbers and strings."""
    (content,) = document["param_groups"][0]["compcomm"].values()
    return content


def tensors(document: Any, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """``{slot: {parameter: tensor}}`` of this rank, or of all."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, entry in zip(names, document["state"].values(), strict=True):
        for mine in entry.get("compcomm", {}).values():
            for slot, tensor in mine.items():
                found.setdefault(slot, {})[name] = tensor
    return found


def same(one: Any, other: Any, *but: str) -> bool:
    """Whether two states, or parts of them, are equal to the bit, apart from what is called so."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = {k for k in (*one, *other) if k not in but}
        return all(k in one and k in other and same(one[k], other[k], *but) for k in names)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b, *but) for a, b in zip(one, other, strict=True))
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other
