"""Memory that does not depend on the number of workers: merged by each slot's rule, and cut anew.

========== ======================================= =============================================
slot       merged                                  loaded by rank r of W'
========== ======================================= =============================================
REPLICATED as it is                                as it is
MEAN       sum of ``weight(r)`` times the ranks'   the mean, on every rank
SHARDED    joined, in the parameter's own order;   its share of it; zero where it was not
           with ``into``: added to that slot       there
DROP       left out                                begins anew
========== ======================================= =============================================

So what is still to be applied, sum of weight(r) e_r + the owners' residuals, is the same before and after: with error
feedback conservation holds over a change of workers, also where another number of workers takes another route (between
two ranks there is no owner, and so no owner's residual). Coded slots are decoded, merged and coded again.

``merge`` is a generator of collectives, as a reducer is. It sums in place, so that there are never more than two copies
of the state: the running one and the result, and for a moment one parameter where it is coded, or dealt out to owners.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from math import prod

import torch
from torch import Tensor

from . import coded
from .bucket import Bucket, Layout, Segment
from .collectives import AllReduce, Collective
from .compressor import Compressor
from .reducer import Reducer
from .store import Entry, Merge, Slot, StateError, Store

CHUNK = 1 << 22
"""Elements that one collective sums: a transport may want as much memory again."""

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
    for e in every:
        if e.slot.merge is Merge.DROP or (e.slot.into and (e.slot.into, e.key) in held):
            continue
        if e.slot.merge is Merge.REPLICATED:
            merged = e.tensor.clone()
        else:
            flat = _part(e, store)
            for other in owed.get((e.name, e.key), ()):
                part, at = _share(other, store)
                flat[at : at + part.numel()] += part.to(flat.dtype)
                del part
            for chunk in flat.split(CHUNK):
                yield AllReduce(chunk)
            merged = _packed(flat, e)
            del flat
        found.setdefault(e.name, {})[e.key] = merged.view(_shape(e.slot, e.segment))
    return found


def check(store: Store, slots: Mapping[str, object]) -> None:
    """Whether ``adopt`` can take ``slots`` in.

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
        if tuple(there.shape) != shape or there.dtype != dtype or there.layout != torch.strided:
            raise StateError(
                f"{what} has shape {list(there.shape)} and {there.dtype} where {list(shape)} and {dtype} are due: the "
                f"checkpoint is of another model. Load it into the one that it was saved with."
            )


def adopt(store: Store, slots: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Takes this rank's part of merged slots. Local; all of it or, on any mismatch, nothing.

    Raises:
        StateError: see ``check``.
    """
    check(store, slots)
    for e in store.entries():
        given = slots.get(e.name, {}).get(e.key)
        if given is None:
            e.tensor.fill_(e.slot.fill)
        elif e.slot.merge is Merge.SHARDED and e.slot.numel is None:
            _cut(given.reshape(-1), e, store)
        else:
            e.tensor.copy_(given.reshape(-1))


def rescale(store: Store, factor: float) -> None:
    """Multiplies what is pending."""
    for e in store.entries():
        if e.slot.pending and e.tensor.numel():
            if e.slot.codec is None:
                e.tensor.mul_(factor)
            else:
                flat = _unpacked(e.tensor, e.held.numel, e.slot.codec)
                _repack(flat, e.tensor, e.slot.codec, factor)


def _part(e: Entry, store: Store) -> Tensor:
    """What this rank adds to the sum over the ranks: a new vector, in the parameter's own order."""
    if e.slot.merge is Merge.MEAN:
        weight = store.reducer.weight(e.segment, store.rank, store.world)
        if e.slot.codec is not None:
            return _unpacked(e.tensor, e.segment.numel, e.slot.codec).mul_(weight)
        wide = e.tensor.dtype if e.tensor.element_size() >= 4 else torch.float32
        return e.tensor.to(wide).mul_(weight) if wide != e.tensor.dtype else e.tensor * weight
    part, at = _share(e, store)
    if part.numel() == e.segment.numel and e.slot.codec is None and part.data_ptr() != e.tensor.data_ptr():
        return part
    whole = part.new_zeros(e.segment.numel)
    whole[at : at + part.numel()] = part
    return whole


def _share(e: Entry, store: Store) -> tuple[Tensor, int]:
    """This rank's share as numbers, and where in the parameter it lies; all of the parameter where it is dealt out."""
    share = e.tensor if e.slot.codec is None else _unpacked(e.tensor, e.held.numel, e.slot.codec)
    at = e.held.offset - e.segment.offset
    if not _dealt(e, store.reducer):
        return share, at
    joined = share.new_zeros(e.segment.numel)
    joined[at : at + share.numel()] = share
    return store.reducer.in_order(e.name, e.segment, joined), 0


def _dealt(e: Entry, reducer: Reducer) -> bool:
    """Whether the joined shares are in another order than the parameter."""
    probe = torch.empty(e.segment.numel, device="meta")
    return reducer.in_order(e.name, e.segment, probe) is not probe


def _cut(natural: Tensor, e: Entry, store: Store) -> None:
    """This rank's share of a merged tensor."""
    codec = e.slot.codec
    if codec is not None:
        natural = _unpacked(natural, e.segment.numel, codec)
    if _dealt(e, store.reducer):
        numbers = torch.arange(e.segment.numel, device=natural.device)
        places, joined = store.reducer.in_order(e.name, e.segment, numbers), torch.empty_like(natural)
        joined[places] = natural
        natural = joined
    at = e.held.offset - e.segment.offset
    share = natural[at : at + e.held.numel]
    if codec is None:
        e.tensor.copy_(share)
    elif share.numel():
        _repack(share.clone(), e.tensor, codec)


def _packed(flat: Tensor, e: Entry) -> Tensor:
    """Numbers in the form in which the slot keeps them."""
    if e.slot.codec is None:
        return flat.to(e.slot.dtype)
    made = torch.zeros(e.slot.size(flat.numel()), dtype=torch.uint8, device=flat.device)
    _repack(flat, made, e.slot.codec)
    return made


def _unpacked(section: Tensor, numel: int, codec: Compressor) -> Tensor:
    flat = torch.zeros(numel, device=section.device)
    layout = _alone(numel)
    coded.decode_(section, layout, codec, Bucket(flat, layout))
    return flat


def _repack(flat: Tensor, section: Tensor, codec: Compressor, factor: float = 1.0) -> None:
    layout = _alone(flat.numel())
    coded.encode_(Bucket(flat, layout), section, codec, decay=factor)


def _alone(numel: int) -> Layout:
    return Layout([Segment("", (numel,), 0, numel)])


def _shape(slot: Slot, segment: Segment) -> tuple[int, ...]:
    """Of the merged tensor: the parameter's, where it has a number per element of a whole parameter."""
    if slot.numel is not None or slot.codec is not None or segment.numel != prod(segment.shape):
        return (slot.size(segment.numel),)
    return segment.shape
