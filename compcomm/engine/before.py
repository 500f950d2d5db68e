"""Memory as it was before a step, so that the step can be taken back bit for bit.

A residual e + g - c cannot be split again: rounding took bits of e, and DDP's bucket, where g was, holds the mean by
then. So it takes a copy, of the bytes of the state, and one ``memcpy`` a step: in the scheduler's thread, while the
backward pass goes on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.reducer import Reducer
from ..core.state import Store


class Before:
    """A twin of each slab, written over when a step begins. Slabs that are cut anew in that step change nothing: what
    is given back goes by slot and parameter.

    ``whole``: of every reducer; else of those alone that hold hints and nothing that a step adds to.
    """

    def __init__(self, whole: bool) -> None:
        self._whole = whole
        self.clear()

    def clear(self) -> None:
        """Lets everything go."""
        self._store: Store | None = None
        self._cuts = -1
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._twins: dict[tuple[str, str, int], Tensor] = {}

    def take(self, store: Store) -> bool:
        """Copies what ``store`` holds now; whether it does so."""
        if not self._whole and isinstance(store.reducer, Reducer) and store.reducer.traits.stateful:
            self.clear()
            return False
        if store is not self._store or store.cuts != self._cuts:
            self._pair(store)
        for slab, twin in self._pairs:
            twin.copy_(slab)
        return True

    def give_back(self) -> None:
        """The store holds again what it held then; what came to it since begins anew."""
        store = self._store
        if store is None:
            return
        store.under_way.clear()  # it begins again from the slots
        for e in store.entries():
            twin = self._twins.get((e.name, e.segment.name, e.segment.offset))
            if twin is None:
                e.tensor.fill_(e.slot.fill)
            else:
                e.tensor.copy_(twin)

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(twin.numel() * twin.element_size() for _, twin in self._pairs)

    def _pair(self, store: Store) -> None:
        self.clear()  # first: two sets of twins are never in memory
        twins: dict[int, Tensor] = {}
        for e in store.entries():
            if not e.tensor.numel():
                continue
            slab = e.tensor if e.tensor._base is None else e.tensor._base
            place = slab.untyped_storage().data_ptr()
            if place not in twins:
                twins[place] = torch.empty_like(slab)
                self._pairs.append((slab, twins[place]))
            start = e.tensor.storage_offset() - slab.storage_offset()
            self._twins[e.name, e.segment.name, e.segment.offset] = twins[place][start : start + e.tensor.numel()]
        self._store, self._cuts = store, store.cuts
