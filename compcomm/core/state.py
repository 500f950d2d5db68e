"""Every tensor that survives a step, keyed by (parameter name, slot).

Reducers declare slots; the store keeps one flat slab per (slot, layout) so that kernels treat a whole bucket at once,
and cuts the slabs anew, by name, when a host changes its buckets (DDP does after its first step). It knows no
algorithm: a slot says itself how it merges when the number of workers changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .layout import Bucket, Layout, Segment


class Merge(Enum):
    """How a slot is combined when a checkpoint of W workers is loaded by W' workers."""

    REPLICATED = "replicated"
    """Equal on all ranks: any copy serves. (Where each rank wants its own row of a mean alone, it holds of such a slot,
    if it has a number per element, that row alone.)"""
    MEAN = "mean"
    """Only the mean over the ranks matters (residuals): every new rank takes the mean."""
    SHARDED = "sharded"
    """Each rank holds its owner's share of the parameter: joined, then cut anew."""
    DROP = "drop"
    """A hint: begins anew."""


class Codec(Protocol):
    """How a slot that holds bytes stands for numbers (``compcomm.state.quantized``)."""

    def nbytes(self, numel: int) -> int:
        """Bytes for ``numel`` numbers."""
        ...

    def read(self, held: Tensor, numel: int, low: int, high: int) -> Tensor:
        """Elements ``[low, high)`` of the ``numel`` that the bytes stand for, fp32."""
        ...

    def write(self, numbers: Tensor, held: Tensor, low: int = 0, *, decay: float = 1.0) -> None:
        """Makes elements from ``low`` on stand for ``decay * numbers``, whose content is then unspecified."""
        ...


class Slotted(Protocol):
    """What declares slots: a reducer."""

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        """The state that a segment needs, by slot name."""
        ...


@dataclass(frozen=True)
class Slot:
    """A tensor per parameter: ``numel`` elements (None: as many as the segment has) of ``dtype``, first ``fill``.

    Args:
        alignment: of SHARDED slots: a rank holds ``segment.share(rank, world, alignment)``.
        into: of SHARDED slots: the slot of the same parameter that takes this one's value up when the workers change,
            as the mean residual takes up what an owner still owed; "": joined and cut anew.
        codec: the slot holds no numbers but bytes that stand for as many fp32 numbers as the segment has.
        pending: gradient that is still to be applied: rescaled where the learning rate changes.
        weights: of MEAN slots: the part of each rank in the mean, which add up to 1; None: equal parts.
        order: of SHARDED slots: brings all ranks' shares, joined, into the order of the parameter's elements; None:
            they are in it.
    """

    merge: Merge
    numel: int | None = None
    dtype: torch.dtype = torch.float32
    fill: float = 0.0
    alignment: int = 1
    into: str = ""
    codec: Codec | None = None
    pending: bool = False
    weights: tuple[float, ...] | None = None
    order: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.into and self.merge is not Merge.SHARDED:
            raise ValueError(f"{self!r}: only what is SHARDED goes into another slot. Leave into={self.into!r} out.")
        if self.numel is not None and self.merge is Merge.SHARDED:
            raise ValueError(f"{self!r}: owners share what has a number per element. Leave numel={self.numel} out.")
        if self.codec is not None and (self.dtype != torch.uint8 or self.fill != 0.0 or self.numel is not None):
            raise ValueError(
                f"{self!r}: a codec's sections are bytes, first zero, and it knows how many. Give dtype=torch.uint8, "
                f"no fill and no numel."
            )
        if self.merge is Merge.MEAN and self.codec is None and not self.dtype.is_floating_point:
            raise ValueError(f"{self!r}: {self.dtype} has no mean. Use REPLICATED, or a floating-point dtype.")

    @property
    def of_mean(self) -> bool:
        """Whether it has a number per element of the mean, which is what who wants a row of it has no use for."""
        return self.merge is Merge.REPLICATED and self.numel is None

    def size(self, numel: int) -> int:
        """Elements of ``dtype`` for ``numel`` elements of a parameter."""
        if self.numel is not None:
            return self.numel
        return numel if self.codec is None else self.codec.nbytes(numel)

    def weight(self, rank: int, world: int) -> float:
        """The part of a rank in the mean of a MEAN slot."""
        return 1.0 / world if self.weights is None else self.weights[rank]

    def natural(self, joined: Tensor) -> Tensor:
        """All ranks' shares of a SHARDED slot, joined, in the order of the parameter's elements."""
        return joined if self.order is None else self.order(joined)


class StateError(ValueError):
    """A state dict does not fit this model or reducer. The running state is as it was before the call."""


class Entry(NamedTuple):
    """One slot of one parameter on this rank: ``tensor`` holds what ``slot`` says of the segment ``held``, which is the
    whole ``segment`` or this rank's share of it."""

    name: str
    slot: Slot
    segment: Segment
    held: Segment
    tensor: Tensor

    @property
    def key(self) -> str:
        """What the parameter, or the piece of it, is called in state dicts."""
        return _text(self.segment.name, self.segment.offset)


class Store:
    """The slabs of one reducer on one rank.

    Slots are made eagerly by ``declare``; ``bucket(slot, layout)`` gives the slab for a layout and moves the values
    there, parameter by parameter, when they lie in another one.
    """

    def __init__(
        self,
        reducer: Slotted,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        *,
        rows: bool = False,
    ) -> None:
        """``rows``: layouts are made of one row per rank, of which each wants its own alone."""
        self.reducer, self.rank, self.world, self.device = reducer, rank, world, torch.device(device)
        self.rows = rows
        self._home: dict[str, dict[tuple[str, int], Tensor]] = {}  # slot -> (name, offset) -> view of a slab
        self._slabs: dict[tuple[str, Layout], Bucket] = {}
        self._parts: dict[tuple[str, Layout], dict[tuple[str, int], Tensor]] = {}  # of each slab, by parameter
        self._segments: dict[tuple[str, int], Segment] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of every parameter that was in a layout, here or as a piece that lies elsewhere."""
        self.cuts = 0
        """How often slabs have been cut, so that who knows where something lies can tell whether it still does."""
        self.under_way: dict[object, Any] = {}
        """Work that goes on in the background, by whose it is: never saved, since all that it needs is in the slots."""

    def declare(self, layout: Layout) -> None:
        """Makes every slot of every segment now, so that all ranks hold the same keys whatever comes first."""
        found: dict[str, dict[torch.dtype, list[Segment]]] = {}
        for s in layout.segments:
            self.shapes[s.name] = s.shape
            for name, slot in self.reducer.slots(s, self.world).items():
                found.setdefault(name, {}).setdefault(slot.dtype, []).append(s)
        for name, kinds in found.items():
            for segments in kinds.values():  # several, where parts of a Partition keep a slot of this name differently
                self.bucket(name, layout if len(kinds) == 1 else Layout(segments, layout.numel))

    def bucket(self, slot: str, layout: Layout) -> Bucket:
        """The slab of ``slot`` over the segments of ``layout`` that have it: packed, in the layout's order."""
        slab = self._slabs.get((slot, layout))
        return self._make(slot, layout) if slab is None else slab

    def _make(self, name: str, layout: Layout) -> Bucket:
        self.cuts += 1
        segments: list[Segment] = []
        slots: list[Slot] = []
        keys: list[tuple[str, int]] = []
        start = 0
        wanted = layout.equal_rows(self.world)[self.rank] if self.rows else layout
        for s in layout.segments:
            slot = self.reducer.slots(s, self.world).get(name) if s.numel else None
            if slot is not None and not (slot.of_mean and wanted.position(s) < 0):
                held = s.share(self.rank, self.world, slot.alignment) if slot.merge is Merge.SHARDED else s
                numel = slot.size(held.numel)
                plain = slot.numel is None and slot.codec is None
                shape, offset = (s.shape, held.offset) if plain else ((numel,), 0)
                segments.append(Segment(s.name, shape, start, start + numel, offset))
                slots.append(slot)
                keys.append((s.name, s.offset))
                self._segments[s.name, s.offset] = s
                start += numel
        if not slots and name not in self._home:
            self._check_name(name, layout)
        dtype = slots[0].dtype if slots else torch.float32
        if any(slot.dtype != dtype for slot in slots):
            raise ValueError(
                f"Store.bucket({name!r}, {layout!r}): its slots differ in dtype. Ask for one part's alone."
            )
        # Values move: a parameter that lay in another bucket's slab (DDP regroups its buckets after the first step)
        # brings what it remembers along, and slabs that nobody points into any more are let go.
        slab = Bucket(torch.empty(start, dtype=dtype, device=self.device), Layout(segments, start))
        home, parts = self._home.setdefault(name, {}), dict[tuple[str, int], Tensor]()
        for segment, slot, key in zip(segments, slots, keys, strict=True):
            part, old = slab.flat[segment.start : segment.stop], home.get(key)
            if old is not None and old.numel() == part.numel():
                part.copy_(old)
            else:
                part.fill_(slot.fill)
            home[key] = parts[key] = part
        # One that lost a part of its parameters to another is none for its layout any more: what it has is old.
        self._slabs = {
            k: b
            for k, b in self._slabs.items()
            if k[0] != name or all(home.get(key) is part for key, part in self._parts[k].items())
        }
        self._parts = {k: p for k, p in self._parts.items() if k in self._slabs}
        self._slabs[name, layout], self._parts[name, layout] = slab, parts
        return slab

    def _check_name(self, name: str, layout: Layout) -> None:
        """An empty slab is right where every parameter travels uncompressed, and wrong where the name is."""
        declared = {slot for s in layout.segments for slot in self.reducer.slots(s, self.world)}
        near = get_close_matches(name, declared, n=1, cutoff=0.75)
        if near and name not in declared:
            raise StateError(f"state[{name!r}]: {self.reducer!r} declares no such slot. Did you mean {near[0]!r}?")

    def segments(self) -> list[Segment]:
        """Those that have slots, in the same order on every rank."""
        return [self._segments[key] for key in sorted(self._segments)]

    def get(self, slot: str, segment: Segment) -> Tensor:
        """What one parameter, or the piece of it, has in a slot."""
        return self._home[slot][segment.name, segment.offset]

    def nbytes(self) -> int:
        """Bytes of all slabs, those too of which a part is in use."""
        held = (t.untyped_storage() for home in self._home.values() for t in home.values())
        return sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())

    def entries(self) -> list[Entry]:
        """Everything that is held, by slot and parameter: in the same order on every rank."""
        found: list[Entry] = []
        for name, home in sorted(self._home.items()):
            for key, tensor in sorted(home.items()):
                segment = self._segments[key]
                slot = self.reducer.slots(segment, self.world)[name]
                sharded = slot.merge is Merge.SHARDED
                held = segment.share(self.rank, self.world, slot.alignment) if sharded else segment
                found.append(Entry(name, slot, segment, held, tensor))
        return found

    def rename(self, names: Mapping[str, str]) -> None:
        """Gives parameters their real names; the values stay."""
        self.under_way.clear()
        self.cuts += 1
        self._home = {s: {(names.get(n, n), o): t for (n, o), t in e.items()} for s, e in self._home.items()}
        self.shapes = {names.get(n, n): shape for n, shape in self.shapes.items()}
        segments = [s._replace(name=names.get(s.name, s.name)) for s in self._segments.values()]
        self._segments = {(s.name, s.offset): s for s in segments}
        self._slabs, self._parts = {}, {}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """This rank's tensors, ``{slot: {"name" or "name@offset": tensor}}``: exact, local, no communication."""
        return {s: {_text(*k): t.clone() for k, t in sorted(e.items())} for s, e in sorted(self._home.items()) if e}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes a ``state_dict`` of this rank: all of it or, on any mismatch, nothing.

        Raises:
            StateError: see ``check``.
        """
        self.check(state)
        self.under_way.clear()
        for slot, entries in self._home.items():
            for key, tensor in entries.items():
                tensor.copy_(state[slot][_text(*key)].reshape(-1))

    def check(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Whether ``load_state_dict`` can take ``state``.

        Raises:
            StateError: a slot or parameter is missing, unknown, or of another size or dtype.
        """
        mine = {s: {_text(*k): t for k, t in e.items()} for s, e in self._home.items() if e}
        for slot, entries in state.items():
            if not isinstance(entries, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise StateError(f"load_state_dict: slot {slot!r} is a {type(entries).__name__}, no dictionary.")
        given = {s: dict(e) for s, e in state.items() if e}
        for slot in sorted(mine.keys() | given.keys(), key=str):
            here, there = mine.get(slot, {}), given.get(slot, {})
            for name in sorted(here.keys() | there.keys(), key=str):
                if name not in there or name not in here:
                    fault = "is missing" if name in here else "is unknown here"
                    cause = cut_elsewhere(name, here, there) or "saved by another model or reducer."
                    raise StateError(f"load_state_dict: {slot!r} of {name!r} {fault}: {cause}")
                a, b = here[name], there[name]
                if not isinstance(b, Tensor):
                    raise StateError(f"load_state_dict: {slot!r} of {name!r} is a {type(b).__name__}, not a tensor.")
                if b.is_meta or b.layout != torch.strided:
                    raise StateError(
                        f"load_state_dict: {slot!r} of {name!r} is a tensor without numbers ({b.device}, {b.layout}). "
                        f"Load the checkpoint with map_location='cpu'."
                    )
                if a.numel() != b.numel() or a.dtype != b.dtype:
                    cause = cut_elsewhere(name, here, there) or "saved by another model, reducer or number of workers."
                    raise StateError(
                        f"load_state_dict: {slot!r} of {name!r} has {b.numel()} elements of {b.dtype} where "
                        f"{a.numel()} of {a.dtype} are due: {cause}"
                    )


class State:
    """What one flow sees of the store: its bucket's slabs, by slot name."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self.store, self.layout = store, layout

    def __getitem__(self, slot: str) -> Bucket:
        return self.store.bucket(slot, self.layout)

    def on(self, layout: Layout) -> State:
        """The same store, for some of the segments."""
        return State(self.store, layout)


def _text(name: str, offset: int) -> str:
    return f"{name}@{offset}" if offset else name


def _place(key: str) -> tuple[str, int]:
    """What ``_text`` was given."""
    name, at, offset = str(key).rpartition("@")  # a checkpoint's keys are whatever it holds
    return (name, int(offset)) if at and offset.isdecimal() else (str(key), 0)


def cut_elsewhere(key: str, here: Iterable[str], there: Iterable[str]) -> str:
    """What is wrong, and the cure, where a checkpoint holds the parameter of ``key`` as this store does, but in pieces
    that begin at other elements; "" where that is not the fault."""
    name = _place(key)[0]
    starts = [sorted(at for known, at in map(_place, keys) if known == name) for keys in (here, there)]
    if not all(starts) or starts[0] == starts[1]:
        return ""
    mine, saved = (", ".join(map(str, at)) for at in starts)
    return (
        f"the memory was cut elsewhere: {name!r} has pieces from elements {saved} in the checkpoint, from {mine} here. "
        f"Buckets decide where. Load it where they are cut as they were, or begin without: a new memory is zero."
    )
