"""State that was saved while parameters lay in memory in another order, as a model in another memory format has them.

Most of a state dict is row-major, whatever the order was and is (``Entry.row_major``). The rest, bytes of a codec,
owners' shares and pieces of parameters, is saved as it lay, and the orders beside it. Where those differ from today's,
a parameter is put together, turned, and cut again: owners' shares over the wire, as another order gives every owner
other elements. What a codec holds is coded again, which costs one rounding; all else keeps its bits.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from . import coded
from .collectives import AllReduce, Collective
from .store import Entry, Merge, StateError, Store
from .strides import logical, stored

Slots = Mapping[str, Mapping[str, Tensor]]


def reordered(
    store: Store, slots: Slots, orders: Mapping[str, Sequence[int]], merged: bool
) -> Generator[Collective, bool, Slots]:
    """``slots`` as they would have been saved with today's orders.

    Args:
        slots: what ``Store.state_dict`` of this rank, or ``portable.merge`` gave; its sizes have been checked.
        orders: ``Store.orders`` of that time, equal on all ranks.
        merged: whether every entry is of a whole parameter, or piece, and not an owner's share.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    for e in store.entries():
        opaque = e.slot.numel is not None and not e.slot.axis
        there = tuple(orders.get(e.segment.name, ()))
        held = e._replace(held=e.segment) if merged else e
        if there != e.segment.order and not opaque and not held.row_major and e.key in slots.get(e.name, {}):
            check(e, there)
            groups.setdefault((e.name, e.segment.name), []).append(held)
    if not groups:
        return slots
    found = {name: dict(entries) for name, entries in slots.items()}
    for (name, parameter), entries in groups.items():
        shape, now = entries[0].segment.shape, entries[0].segment.order
        first = entries[0].slot
        dtype = first.dtype if first.codec is None else torch.float32
        full = torch.zeros(prod(shape), dtype=dtype, device=entries[0].tensor.device)
        for e in entries:
            given, low = found[name][e.key].reshape(-1).to(full.device), e.held.offset
            full[low : low + e.held.numel] = (
                given if e.slot.codec is None else coded.read(given, e.slot.codec, e.held.numel, 0, e.held.numel)
            )
        if first.merge is Merge.SHARDED and not merged:
            yield AllReduce(full)
        full = stored(logical(full, shape, tuple(orders.get(parameter, ()))), shape, now)
        for e in entries:
            part = full[e.held.offset : e.held.offset + e.held.numel]
            if e.slot.codec is not None:
                section = torch.zeros(e.slot.size(e.held.numel), dtype=e.slot.dtype, device=part.device)
                coded.write(part.clone(), section, e.slot.codec)
                part = section
            found[name][e.key] = part
    return found


def check(e: Entry, order: Sequence[int]) -> None:
    """Raises StateError where ``order`` is none of the parameter's."""
    shape = e.segment.shape
    if sorted(order) != list(range(len(shape))) and order:
        raise StateError(
            f"the checkpoint's order of {e.segment.name!r}, {list(order)}, is no order of the {len(shape)} dimensions "
            f"that it has here: it is of another model. Load it into the one that it was saved with."
        )
