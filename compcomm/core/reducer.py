"""The contract of a reducer: one way to average a bucket over the workers.

A reducer is a frozen description; ``reduce`` is a generator that yields collectives and is resumed when they are done.
It does not know who runs it: a process group, a simulator of W ranks in one process, or a dry run that counts bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .collectives import Collective, Commit
from .compressor import Compressor, Payload
from .deferred import Fault, Truth
from .description import Described
from .layout import Bucket, Layout, Segment
from .random import Rng
from .source import Source, Target
from .state import Slot, State, Store

if TYPE_CHECKING:
    from ..transports.dry_run import Cost


class Arena:
    """Scratch memory that is kept from step to step, one buffer per (bucket, purpose)."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._buffers: dict[tuple[int, str, torch.dtype], Tensor] = {}
        self._free: list[Tensor] = []

    def buffer(self, bucket: int, tag: str, numel: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """``numel`` elements whose content is whatever was left there."""
        key = (bucket, tag, dtype)
        found = self._buffers.get(key)
        if found is None or found.numel() != numel:
            found = self._buffers[key] = torch.zeros(numel, dtype=dtype, device=self.device)
        return found

    def lend(self, numel: int) -> Tensor:
        """``numel`` fp32 elements until ``take_back``: flows of several buckets share what each needs for a moment."""
        best = min((t for t in self._free if t.numel() >= numel), key=Tensor.numel, default=None)
        if best is None:
            self._free = self._free[1:]  # too small: let go
            best = torch.zeros(numel, dtype=torch.float32, device=self.device)
        else:
            self._free = [t for t in self._free if t is not best]
        return best[:numel]

    def take_back(self, lent: Tensor) -> None:
        """Ends a loan."""
        self._free.append(lent if lent._base is None else lent._base)

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(b.numel() * b.element_size() for b in (*self._buffers.values(), *self._free))


@dataclass
class Context:
    """Where a flow runs: which rank of how many, which step, which bucket of the step.

    ``watch``: whether anything in this attachment must know of non-finite results. ``unscale``: 1/loss-scale.
    ``bad`` is the flow's answer: it met a non-finite value on some rank. ``faults``: what its peers may have done,
    where the device knows and the host is yet to look (``verdict``). ``participating``: whether this rank is one of
    the ``present`` (None: all) in this step.

    What a scheme around a route tells it: ``status`` (as the kernels write it: non-finite, then nonzero per segment) of
    the gradient, where what is coded is not it; ``weights`` of the ranks, where their sum replaces the mean.
    """

    rank: int = 0
    world: int = 1
    step: int = 0
    bucket: int = 0
    seed: int = 0
    unscale: float = 1.0
    watch: bool = True
    participating: bool = True
    present: int | None = None
    status: Tensor | None = None
    weights: tuple[float, ...] | None = None
    arena: Arena = field(default_factory=Arena)
    bad: Truth = False
    faults: list[Fault] = field(default_factory=list[Fault])
    tag: str = ""
    dtype: torch.dtype | None = None
    """Of the gradient, where the bucket is a wider copy of it: what travels exact need not be wider."""

    @property
    def rng(self) -> Rng:
        """The coordinates of this rank's draws in this step."""
        return Rng(self.seed, self.step, self.rank)

    def buffer(self, tag: str, numel: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Scratch memory of this bucket, kept until the next step asks for the same."""
        return self.arena.buffer(self.bucket, self.tag + tag, numel, dtype)


class Update(Protocol):
    """What this rank sent, decoded lazily."""

    def add_(self, into: Bucket, scale: float = 1.0) -> None:
        """into += scale * what was sent, for the segments that ``into`` has."""
        ...

    def zero_(self, into: Bucket) -> None:
        """Zeroes in ``into`` the elements that were sent."""
        ...

    def dense(self, layout: Layout) -> Bucket:
        """As a new bucket."""
        ...


class Sent:
    """An ``Update`` of one payload: segments in ``skip`` were given back."""

    def __init__(self, payload: Payload, skip: Tensor | None = None) -> None:
        self.payload, self.skip = payload, skip

    def add_(self, into: Bucket, scale: float = 1.0) -> None:
        """into += scale * what was sent: O(k) for sparse payloads."""
        self.payload.decode_add_(into, scale, skip=self.skip)

    def zero_(self, into: Bucket) -> None:
        """Zeroes in ``into`` the elements that were sent."""
        self.payload.zero_(into, skip=self.skip)

    def dense(self, layout: Layout) -> Bucket:
        """As a new bucket."""
        bucket = Bucket(torch.zeros(layout.numel, dtype=torch.float32, device=self.payload.wire.device), layout)
        self.add_(bucket)
        return bucket


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Reduced:
    """What ``reduce`` returns.

    ``sent``: this rank's own payload, None where everything went (``Exact``). ``error``: what this rank failed to
    send (aliases x), None when nothing was lost. ``undo``: gives back what this step took from memory, and takes what
    a route added to an ``out`` that accumulates, for a step that the optimizer skips. ``keep``: what is left to do
    where the step counts. ``bad``: a rank met a non-finite value in this bucket. ``dead``: uint8 per segment, 1 where
    every rank's gradient is zero; None where there is surely no such segment.
    """

    sent: Update | None = None
    error: Bucket | None = None
    undo: Callable[[], None] = _nothing
    keep: Callable[[], None] = _nothing
    bad: Truth = False
    dead: Tensor | None = None

    def after(self, undo: Callable[[], None]) -> Reduced:
        """The same, where ``undo`` comes before its own."""

        def both() -> None:
            undo()
            self.undo()

        return replace(self, undo=both)


Flow = Generator[Collective, bool, Reduced]
Review = Generator[Collective, bool, None]
"""What is done between two steps."""


class Group(NamedTuple):
    """The parameter group that a parameter is in: its number in an optimizer of that name, and its options."""

    optimizer: str
    number: int
    options: Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class Reducer(Described, ABC, abstract=True):
    """Base of all reducers."""

    def slots(self, segment: Segment, world: int) -> Mapping[str, Slot]:
        """The state that a segment needs, by slot name."""
        return {}

    def exact(self, segment: Segment) -> bool:
        """Whether this segment travels exact: it has no residual."""
        return False

    def delta(self, segment: Segment) -> float | None:
        """The contraction of what is not sent: sum of errors <= (1 - delta)|x|^2; None: no promise."""
        return None

    def conserves(self, segment: Segment) -> bool:
        """Whether the mean is that of exactly what the ranks count as sent, owners' residuals included: under feedback
        nothing of this segment is then ever lost."""
        return True

    def weight(self, slot: str, segment: Segment, rank: int, world: int) -> float:
        """The part of a rank in the mean of a MEAN slot; they add up to 1."""
        return 1.0 / world

    def for_any_world(self) -> Reducer:
        """This description without what belongs to one number of ranks: what portable states must agree on."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        found = {name: part.for_any_world() for name, part in parts.items() if isinstance(part, Reducer)}
        return replace(self, **found) if found else self

    def in_order(self, slot: str, segment: Segment, joined: Tensor) -> Tensor:
        """A SHARDED slot, all ranks' shares joined, in the order of the parameter's elements."""
        return joined

    def contractive(self, scheme: str) -> Reducer:
        """This reducer as the feedback scheme of that name needs it; an error where its compressor is no
        contraction."""
        raise ValueError(
            f"{scheme}({self!r}): {type(self).__name__} gives no error to feed back. {self.feedback_cure(scheme)}"
        )

    def feedback_cure(self, scheme: str) -> str:
        """How the feedback scheme of that name goes together with this reducer."""
        return "Use it as it is."

    def under_feedback(self, scheme: type[Reducer] | None) -> Reducer:
        """This settled reducer as it runs inside a feedback scheme whose owners use ``scheme``; None: inside none."""
        return self

    @property
    def weighs(self) -> bool:
        """Whether it heeds ``Context.weights``."""
        return False

    @property
    def absence(self) -> bool:
        """Whether ranks may sit a step out (``Context.participating``)."""
        return False

    def settle(self, world: int) -> Reducer:
        """This reducer with every route chosen for ``world`` ranks."""
        return self

    def cost(self, layout: Layout, world: int, rank: int = 0) -> Cost:
        """Exact bytes that ``rank`` sends per step for a bucket of that layout, from a dry run; link headers apart.
        Where messages vary in length, the most that it may send."""
        from ..transports.dry_run import cost

        return cost(self, layout, world, rank)

    @property
    def stateful(self) -> bool:
        """Whether a bad step leaves something to undo."""
        return False

    @property
    def accumulates(self) -> bool:
        """Whether several backward passes may make one optimizer step, each of them averaged: what they deliver then
        adds up, with what is remembered, to the mean of the sum of their gradients."""
        return all(part.accumulates for part in vars(self).values() if isinstance(part, Reducer))

    @property
    def needs_names(self) -> bool:
        """Whether it, or a part of it, treats parameters by their names, so that a host must know them first."""
        return any(getattr(part, "needs_names", False) for part in vars(self).values())

    @property
    def variable(self) -> bool:
        """Whether messages may be shorter than a dry run lists: it then lists their capacity."""
        return any(getattr(part, "variable", False) is True for part in vars(self).values())

    def check(self, layout: Layout) -> None:
        """Raises ValueError where this reducer does not fit a model's parameters; a host calls it at attach."""
        for part in vars(self).values():
            if isinstance(part, Reducer):
                part.check(layout)

    def check_optimizer(self, groups: Mapping[str, Group | None] | None) -> None:
        """Raises ValueError where this reducer does not go together with the optimizer; a host calls it at attach.

        ``groups``: by parameter, the group that it is in (None: in no given optimizer); None: no optimizer was given.
        """
        for part in vars(self).values():
            if isinstance(part, Reducer):
                part.check_optimizer(groups)

    def due(self, step: int) -> bool:
        """Whether there is something to review after ``step``: a function of the configuration and the step alone."""
        return any(part.due(step) for part in vars(self).values() if isinstance(part, Reducer))

    def review(self, segments: Sequence[Segment], store: Store, ctx: Context) -> Review:
        """After step ``ctx.step``, while the host goes on: what controllers measure, exchange and decide.

        Yields collectives as ``reduce`` does, and no Commit. ``segments``: those in its charge, in the same order on
        every rank. It changes REPLICATED slots, equally on all ranks, and nothing that is still to be applied.
        """
        for part in vars(self).values():
            if isinstance(part, Reducer) and part.due(ctx.step):
                yield from part.review(segments, store, ctx)

    def now(self, state: State) -> Reducer:
        """This reducer as it runs with the decisions that ``state`` holds: it yields the same, and asks no state."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        found = {n: (part, part.now(state)) for n, part in parts.items() if isinstance(part, Reducer)}
        changed = {n: new for n, (old, new) in found.items() if new is not old}
        return replace(self, **changed) if changed else self

    def choices(self, segments: Sequence[Segment], store: Store) -> dict[str, float]:
        """What controllers have chosen, by parameter: the density, the bits or the rank of each that they control."""
        found: dict[str, float] = {}
        for controller, own in self.controllers(segments):
            found |= controller.choices(own, store)
        return found

    def scheduled(self, segments: Sequence[Segment], step: int) -> dict[str, float]:
        """What schedules give in ``step``, by parameter: a function of the configuration and the step alone."""
        found: dict[str, float] = {}
        for part in vars(self).values():
            if isinstance(part, Reducer):
                found |= part.scheduled(segments, step)
        return found

    def controllers(self, segments: Sequence[Segment]) -> Iterator[tuple[Any, Sequence[Segment]]]:
        """Those within, the outermost of each branch, with the segments in their charge."""
        for part in vars(self).values():
            if isinstance(part, Reducer):
                yield from part.controllers(segments)

    @property
    def narrow(self) -> bool:
        """Whether buckets in bfloat16 and float16 may come as they are, where kernels read them so; else they go
        through fp32."""
        return False

    def native(self, step: int) -> bool:
        """Whether ``step`` is one plain sum of the bucket in its own dtype (bf16, fp16, ...); else it goes through
        fp32."""
        return False

    @abstractmethod
    def reduce(self, source: Source, target: Target, state: State, ctx: Context) -> Flow:
        """target.out = (out if accumulate) + scale * mean over the ranks of y, y = decay*x + add_scale*add.

        On return ``source.x`` holds y minus what was sent. Where a rank met a non-finite value, ``out`` is NaN; where
        it accumulates, the finite part is added, and ``Reduced.undo`` takes it back.
        """
        raise NotImplementedError


def settle(reducer: Reducer | Compressor, world: int, scheme: type[Reducer] | None = None) -> Reducer:
    """A reducer that can run among ``world`` ranks; a compressor gets the route that fits it.

    ``scheme``: what the owners of the feedback scheme around it use; None: there is none around it.

    =================== ==========================================================================
    all-reduce          the compressor is linear and loses nothing in fp32 sums
    all-gather          it is sparse, or there are two ranks (same bytes as two-phase, one round,
                        no second loss)
    two-phase           any other
    =================== ==========================================================================
    """
    if isinstance(world, bool) or not isinstance(world, int) or world < 1:
        raise ValueError(f"settle({reducer!r}, world={world!r}): the number of ranks is an integer, 1 or more.")
    if isinstance(reducer, Reducer):
        return reducer.settle(world).under_feedback(scheme)
    from ..routes.all_gather import AllGather
    from ..routes.all_reduce import AllReduce
    from ..routes.two_phase import TwoPhase

    if reducer.linear and reducer.dtype == torch.float32:
        return AllReduce(reducer)
    if reducer.sparse or world <= 2:
        return AllGather(reducer)
    return TwoPhase(reducer).under_feedback(scheme)


def flow(reducer: Reducer, bucket: Bucket, state: State, ctx: Context, out: Bucket | None = None) -> Flow:
    """The whole life of a bucket in a step: reduce, then Commit, then keep or, where the step was bad, undo."""
    result = yield from reducer.reduce(Source(bucket), Target(out or bucket), state, ctx)
    if (yield Commit()):
        result.undo()
    else:
        result.keep()
    return result
