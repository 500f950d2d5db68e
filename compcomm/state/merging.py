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

Merged is whole parameters, by name. Where ranks hold pieces of them, all of them (``fully_shard``'s buffers) or some
(a shard), the pieces are put together, and cut anew where they are loaded, for other numbers of ranks too. What has not
a number per element but some per piece (a factor of PowerSGD's) begins anew there.

``merge`` is a generator of collectives, as a reducer is. It goes through the state in pieces of 2**20 elements, so that
there are never more than two copies of it: the running one and the result. (Where owners hold a parameter in an order
of their own, two vectors of the size of that parameter come for a moment.)
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.collectives import AllReduce, AllReduceMax, Collective
from ..core.layout import Segment
from ..core.state import Entry, Merge, Slot, StateError, Store
from .quantized import PIECE

Portable = dict[str, dict[str, Tensor]]
Shapes = Mapping[str, tuple[int, ...]]


class Merged(NamedTuple):
    """A slot of one parameter as all ranks have it together, and what this rank holds of it."""

    name: str
    slot: Slot
    whole: Segment
    held: Sequence[Entry]

    @property
    def begins_anew(self) -> bool:
        """Whether this rank has numbers per piece of it, which cannot be put together."""
        return self.slot.numel is not None and any(not e.segment.whole for e in self.held)

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's, where it has a number per element."""
        slot = self.slot
        if slot.numel is not None or slot.codec is not None:
            return (slot.size(self.whole.numel),)
        return self.whole.shape


def _all(store: Store, shapes: Shapes | None) -> list[Merged]:
    """Every slot that is merged or owed, in the same order on every rank. ``shapes``: of all parameters, where a store
    may not have met some of them."""
    held: dict[tuple[str, str], list[Entry]] = {}
    for e in store.entries():
        held.setdefault((e.name, e.segment.name), []).append(e)
    found: list[Merged] = []
    for parameter, shape in (store.shapes if shapes is None else shapes).items():
        numel = prod(shape)
        whole = Segment(parameter, shape, 0, numel)
        for name, slot in store.reducer.slots(whole, store.world).items() if numel else ():
            if slot.merge is not Merge.DROP:
                found.append(Merged(name, slot, whole, held.get((name, parameter), [])))
    return sorted(found, key=lambda m: (m.name, m.whole.name))


def merge(store: Store, shapes: Shapes | None = None) -> Generator[Collective, bool, Portable]:
    """``{slot: {parameter: tensor}}``, merged over the ranks and equal on all of them. Every rank runs it between the
    same two steps. ``shapes``: of all parameters by name, where no rank holds all of them; default: those that the
    store has met."""
    known = _all(store, shapes)
    anew = torch.tensor([m.begins_anew for m in known], dtype=torch.int32, device=store.device)
    if shapes is not None and known:  # another rank's piece may be one that travels exact, or there is none
        yield AllReduceMax(anew)
    every = {(m.name, m.whole.name): m for m, not_here in zip(known, anew.tolist(), strict=True) if not not_here}
    owed: dict[tuple[str, str], list[Entry]] = {}
    for m in every.values():
        if (m.slot.into, m.whole.name) in every:
            owed.setdefault((m.slot.into, m.whole.name), []).extend(m.held)
    due = {key: m for key, m in every.items() if (m.slot.into, m.whole.name) not in every}
    copied = {  # where every rank surely has all of it
        key
        for key, m in due.items()
        if m.slot.merge is Merge.REPLICATED and shapes is None and not (store.rows and m.slot.of_mean)
        if any(e.segment.whole for e in m.held)
    }
    found: Portable = {}
    # All results first: memory that comes and goes would leave holes between them.
    fresh = {
        key: torch.empty(m.slot.size(m.whole.numel), dtype=m.slot.dtype, device=store.device)
        for key, m in due.items()
        if key not in copied
    }
    room = torch.empty(0, dtype=torch.float32)
    for key, m in due.items():
        sources = [_Source(e, store) for e in owed.get(key, ())]
        alone = key in copied and key not in owed
        if key in copied:
            merged = m.held[0].tensor.clone()
        else:
            sources += [_Source(e, store) for e in m.held]
            merged = fresh.pop(key)
        plain = key not in copied and m.slot.codec is None and merged.dtype == _wide(m.slot)
        if not alone and not plain and (room.numel() < m.whole.numel or room.dtype != _wide(m.slot)):
            room = torch.empty(PIECE, dtype=_wide(m.slot), device=store.device)
        for low in range(0, 0 if alone else m.whole.numel, PIECE):
            high = min(low + PIECE, m.whole.numel)
            piece = merged[low:high] if plain else room[: high - low]
            piece.zero_()
            for source in sources:
                source.add_(piece, low, high)
            yield AllReduce(piece)
            if key in copied:
                piece += _get(merged, m.slot, m.whole.numel, low, high)
            if not plain:
                _put(piece, merged, m.slot, low)
        sources.clear()
        found.setdefault(m.name, {})[m.whole.name] = merged.view(m.shape)
    return found


def check(store: Store, slots: Mapping[str, object], shapes: Shapes | None = None) -> None:
    """Whether ``load_merged`` can take ``slots`` in.

    Raises:
        StateError: naming the slot, the parameter, and what is wrong with it.
    """
    due = {(m.name, m.whole.name): m for m in _all(store, shapes) if not m.begins_anew}
    given: dict[tuple[str, str], object] = {}
    for name, entries in slots.items():
        if not isinstance(entries, Mapping):
            raise StateError(f"load_portable_state_dict: slot {name!r} is a {type(entries).__name__}, no dictionary.")
        given.update({(name, key): tensor for key, tensor in entries.items()})  # pyright: ignore[reportUnknownVariableType]
    begun = {(e.name, e.segment.name) for e in store.entries() if e.slot.numel is not None and not e.segment.whole}
    for name, key in sorted({*due, *(given.keys() - begun)}, key=str):
        here, there = due.get((name, key)), given.get((name, key))
        what = f"load_portable_state_dict: {name!r} of {key!r}"
        if here is None:
            raise StateError(
                f"{what} is in the checkpoint and has no place here: it is of another model or reducer. Load it into "
                f"those that it was saved with; the number of workers alone may differ."
            )
        if there is None:
            if here.slot.merge is Merge.SHARDED or here.slot.numel is not None:
                continue
            raise StateError(
                f"{what} is missing in the checkpoint: it is of another model or reducer. Load one that was saved with "
                f"these, or begin without: a new attachment's memory is zero."
            )
        if not isinstance(there, Tensor):
            raise StateError(f"{what} is a {type(there).__name__}, not a tensor: the checkpoint was changed.")
        if there.is_floating_point() and not there.isfinite().all():
            raise StateError(
                f"{what} is not finite: the checkpoint was changed, or saved by a run that had gone wrong."
            )
        shape, dtype = here.shape, here.slot.dtype
        if tuple(there.shape) != shape or there.dtype != dtype or there.layout != torch.strided or there.is_meta:
            sharded = prod(there.shape) == prod(shape) and len(shape) > 1
            hint = " (A parameter that is sharded along another dimension than the first keeps its number of shards.)"
            raise StateError(
                f"{what} has shape {list(there.shape)} and {there.dtype} where {list(shape)} and {dtype} are due: the "
                f"checkpoint is of another model. Load it into the one that it was saved with.{hint * sharded}"
            )


def load_merged(store: Store, slots: Mapping[str, Mapping[str, Tensor]], shapes: Shapes | None = None) -> None:
    """Takes this rank's part of merged slots. Local; all of it or, on any mismatch, nothing.

    Raises:
        StateError: see ``check``.
    """
    check(store, slots, shapes)
    store.under_way.clear()
    for e in store.entries():
        given = slots.get(e.name, {}).get(e.segment.name)
        if given is None or (e.slot.numel is not None and not e.segment.whole):
            e.tensor.fill_(e.slot.fill)
        elif e.held.whole and e.slot.order is None:
            e.tensor.copy_(given.reshape(-1))
        else:
            _cut(given.reshape(-1), e)


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
        self.e, self.at, self.numel, self.weight = e, e.held.offset, e.held.numel, 1.0
        self.natural: Tensor | None = None
        if e.slot.merge is Merge.MEAN:
            self.weight = e.slot.weight(store.rank, store.world)
        elif e.slot.merge is Merge.REPLICATED and not store.rows:  # else its owner alone holds it
            self.weight = 1.0 / store.world
        elif e.slot.order is not None:
            share = _get(e.tensor, e.slot, e.held.numel, 0, e.held.numel)
            joined, first = share.new_zeros(e.segment.numel), e.held.offset - e.segment.offset
            joined[first : first + share.numel()] = share
            self.natural, self.at, self.numel = e.slot.natural(joined), e.segment.offset, e.segment.numel

    def add_(self, piece: Tensor, low: int, high: int) -> None:
        """piece += elements ``[low, high)`` of the parameter, as far as they are here."""
        first, last = max(low, self.at), min(high, self.at + self.numel)
        if first >= last:
            return
        if self.natural is not None:
            held = self.natural[first - self.at : last - self.at]
        else:
            held = _get(self.e.tensor, self.e.slot, self.numel, first - self.at, last - self.at)
        piece[first - low : last - low].add_(held, alpha=self.weight)


def _cut(merged: Tensor, e: Entry) -> None:
    """This rank's share, or piece, of a merged tensor."""
    total, segment, at = prod(e.segment.shape), e.segment, e.held.offset
    joined: Tensor | None = None
    if e.slot.order is not None:
        numbers = torch.arange(segment.numel, dtype=torch.int64, device=merged.device)
        joined = torch.empty(segment.numel, dtype=_wide(e.slot), device=merged.device)
        joined[e.slot.natural(numbers)] = _get(merged, e.slot, total, segment.offset, segment.offset + segment.numel)
        at -= segment.offset
    for low in range(0, e.held.numel, PIECE):
        high = min(low + PIECE, e.held.numel)
        found = _get(merged, e.slot, total, at + low, at + high) if joined is None else joined[at + low : at + high]
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
