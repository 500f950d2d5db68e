"""Memory that does not depend on the number of workers: merged by each slot's rule, and cut anew.

========== ======================================= =============================================
slot       merged                                  loaded by rank r of W'
========== ======================================= =============================================
REPLICATED as it is, and what goes into it         as it is
MEAN       sum of ``weight(r)`` times the ranks'   the mean, on every rank
SHARDED    joined, in the parameter's own order;   its share of it; zero where it was not
           with ``into``: added to that slot       there
DROP       left out                                begins anew
========== ======================================= =============================================

So what is still to be applied, sum of weight(r) e_r + the owners' residuals, is the same before and after: with error
feedback conservation holds over a change of workers, also where another number of workers takes another route (between
two ranks there is no owner, and so no owner's residual). Coded slots are decoded, merged and coded again.

``merge`` is a generator of collectives, as a reducer is. It goes through the state in pieces of 2**20 elements, so that
there are never more than two copies of it: the running one and the result. (Where owners hold a parameter in an order
of their own, two vectors of the size of that parameter come for a moment.)
"""

from __future__ import annotations

from collections.abc import Generator, Mapping

import torch
from torch import Tensor

from ..core.collectives import AllReduce, Collective
from ..core.layout import Segment
from ..core.state import (
    Entry,
    Merge,
    Slot,
    StateError,
    Store,
    cut_elsewhere,
)
from .quantized import PIECE

Portable = dict[str, dict[str, Tensor]]


def merge(store: Store) -> Generator[Collective, bool, Portable]:
    """``{slot: {parameter: tensor}}``, merged over the ranks and equal on all of them. Every rank runs it between the
    same two steps."""
    every = store.entries()
    held = {(e.name, e.key): e for e in every}
    owed: dict[tuple[str, str], list[Entry]] = {}
    for e in every:
        if e.slot.into and (e.slot.into, e.key) in held:
            owed.setdefault((e.slot.into, e.key), []).append(e)
    found: Portable = {}
    fresh = {
        (e.name, e.key): _empty(e)
        for e in every
        if e.slot.merge in (Merge.MEAN, Merge.SHARDED) and (e.slot.into, e.key) not in held
    }
    # After the results: memory that comes and goes would leave holes between them.
    room = torch.empty(0, dtype=torch.float32)
    for e in every:
        if e.slot.merge is Merge.DROP or (e.slot.into and (e.slot.into, e.key) in held):
            continue
        copied = e.slot.merge is Merge.REPLICATED
        sources = [_Source(other, store) for other in owed.get((e.name, e.key), ())]
        if copied:
            merged = e.tensor.clone()
        else:
            sources.append(_Source(e, store))
            merged = fresh.pop((e.name, e.key))
        plain = not copied and e.slot.codec is None and merged.dtype == _wide(e.slot)
        if sources and not plain and (room.numel() < e.segment.numel or room.dtype != _wide(e.slot)):
            room = torch.empty(PIECE, dtype=_wide(e.slot), device=e.tensor.device)
        for low in range(0, e.segment.numel if sources else 0, PIECE):
            high = min(low + PIECE, e.segment.numel)
            piece = merged[low:high] if plain else room[: high - low]
            piece.zero_()
            for source in sources:
                source.add_(piece, low, high)
            yield AllReduce(piece)
            if copied:
                piece += _get(merged, e.slot, e.segment.numel, low, high)
            if not plain:
                _put(piece, merged, e.slot, low)
        sources.clear()
        found.setdefault(e.name, {})[e.key] = merged.view(_shape(e.slot, e.segment))
    return found


def _empty(e: Entry) -> Tensor:
    """Room for a merged slot of one parameter."""
    return torch.empty(e.slot.size(e.segment.numel), dtype=e.slot.dtype, device=e.tensor.device)


def check(store: Store, slots: Mapping[str, object]) -> None:
    """Whether ``load_merged`` can take ``slots`` in.

    Raises:
        StateError: naming the slot, the parameter, and what is wrong with it.
    """
    due = {(e.name, e.key): e for e in store.entries() if e.slot.merge is not Merge.DROP}
    given: dict[tuple[str, str], object] = {}
    for name, entries in slots.items():
        if not isinstance(entries, Mapping):
            raise StateError(f"load_portable_state_dict: slot {name!r} is a {type(entries).__name__}, no dictionary.")
        given.update({(name, key): tensor for key, tensor in entries.items()})  # pyright: ignore[reportUnknownVariableType]
    for name, key in sorted({*due, *given}, key=str):
        here, there = due.get((name, key)), given.get((name, key))
        what = f"load_portable_state_dict: {name!r} of {key!r}"
        if here is None or (there is None and here.slot.merge is not Merge.SHARDED) or _sized(there, here):
            cut = cut_elsewhere(key, *([k for n, k in of if n == name] for of in (due, given)))
            if cut:
                raise StateError(f"{what}: {cut}")
        if here is None:
            raise StateError(
                f"{what} is in the checkpoint and has no place here: it is of another model or reducer. Load it into "
                f"those that it was saved with; the number of workers alone may differ."
            )
        if there is None:
            if here.slot.merge is Merge.SHARDED:
                continue
            raise StateError(
                f"{what} is missing in the checkpoint: it is of another model or reducer. Load one that was saved with "
                f"these, or begin without: a new attachment's memory is zero."
            )
        if not isinstance(there, Tensor):
            raise StateError(f"{what} is a {type(there).__name__}, not a tensor: the checkpoint was changed.")
        shape, dtype = _shape(here.slot, here.segment), here.slot.dtype
        if tuple(there.shape) != shape or there.dtype != dtype or there.layout != torch.strided or there.is_meta:
            raise StateError(
                f"{what} has shape {list(there.shape)} and {there.dtype} where {list(shape)} and {dtype} are due: the "
                f"checkpoint is of another model. Load it into the one that it was saved with."
            )


def _sized(there: object, here: Entry) -> bool:
    """Whether a tensor is of another size than this slot's."""
    return isinstance(there, Tensor) and there.numel() != here.slot.size(here.segment.numel)


def load_merged(store: Store, slots: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Takes this rank's part of merged slots. Local; all of it or, on any mismatch, nothing.

    Raises:
        StateError: see ``check``.
    """
    check(store, slots)
    store.under_way.clear()
    for e in store.entries():
        given = slots.get(e.name, {}).get(e.key)
        if given is None:
            e.tensor.fill_(e.slot.fill)
        elif e.slot.merge is Merge.SHARDED:
            _cut(given.reshape(-1), e)
        else:
            e.tensor.copy_(given.reshape(-1))


def rescale(store: Store, factor: float) -> None:
    """Multiplies what is pending."""
    for e in store.entries():
        if e.slot.pending and e.slot.codec is None:
            e.tensor.mul_(factor)
        elif e.slot.pending and e.slot.codec is not None:
            for low in range(0, e.held.numel, PIECE):
                high = min(low + PIECE, e.held.numel)
                piece = e.slot.codec.read(e.tensor, e.held.numel, low, high)
                e.slot.codec.write(piece, e.tensor, low, decay=factor)


class _Source:
    """What this rank adds to the sum over the ranks, in the parameter's own order."""

    def __init__(self, e: Entry, store: Store) -> None:
        self.e, self.at, self.weight = e, e.held.offset - e.segment.offset, 1.0
        self.natural: Tensor | None = None
        if e.slot.merge is Merge.MEAN:
            self.weight = e.slot.weight(store.rank, store.world)
        elif e.slot.order is not None:
            share = _get(e.tensor, e.slot, e.held.numel, 0, e.held.numel)
            joined = share.new_zeros(e.segment.numel)
            joined[self.at : self.at + share.numel()] = share
            self.natural = e.slot.natural(joined)

    def add_(self, piece: Tensor, low: int, high: int) -> None:
        """piece += elements ``[low, high)`` of the parameter, as far as they are here."""
        if self.natural is not None:
            piece += self.natural[low:high]
            return
        first, last = max(low, self.at), min(high, self.at + self.e.held.numel)
        if first < last:
            held = _get(self.e.tensor, self.e.slot, self.e.held.numel, first - self.at, last - self.at)
            piece[first - low : last - low].add_(held, alpha=self.weight)


def _cut(natural: Tensor, e: Entry) -> None:
    """This rank's share of a merged tensor."""
    total, at = e.segment.numel, e.held.offset - e.segment.offset
    if e.slot.order is not None:
        numbers = torch.arange(total, dtype=torch.int64, device=natural.device)
        joined = torch.empty(total, dtype=_wide(e.slot), device=natural.device)
        joined[e.slot.natural(numbers)] = _get(natural, e.slot, total, 0, total)
    else:
        joined = None
    for low in range(0, e.held.numel, PIECE):
        high = min(low + PIECE, e.held.numel)
        found = _get(natural, e.slot, total, at + low, at + high) if joined is None else joined[at + low : at + high]
        _put(found, e.tensor, e.slot, low)


def _get(held: Tensor, slot: Slot, numel: int, low: int, high: int) -> Tensor:
    """Elements ``[low, high)`` of the ``numel`` that a slot's tensor stands for, as numbers."""
    if slot.codec is not None:
        return slot.codec.read(held, numel, low, high)
    return held[low:high].to(_wide(slot))


def _put(numbers: Tensor, held: Tensor, slot: Slot, low: int) -> None:
    """Makes the elements from ``low`` on stand for these numbers."""
    if slot.codec is not None:
        slot.codec.write(numbers, held, low)
    else:
        held[low : low + numbers.numel()] = numbers


def _wide(slot: Slot) -> torch.dtype:
    """In what its numbers are summed."""
    return slot.dtype if slot.codec is None and slot.dtype.itemsize >= 4 else torch.float32


def _shape(slot: Slot, segment: Segment) -> tuple[int, ...]:
    """Of the merged tensor: the parameter's, where it has a number per element of a whole parameter."""
    if slot.numel is not None or slot.codec is not None or not segment.whole:
        return (slot.size(segment.numel),)
    return segment.shape
