"""The checks can fail: each of these breaks one promise, and a check says which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.core.description import Described
from compcomm.core.reducer import Flow
from compcomm.core.rows import Inputs
from compcomm.core.source import Source, Target
from compcomm.core.state import State
from compcomm.core.traits import Promises, Traits
from compcomm.testing import (
    COMPRESSOR_CHECKS,
    REDUCER_CHECKS,
    ContractError,
    buckets,
    check_compressor,
    check_reducer,
    conservation,
    payload,
    pieces,
    properties,
    state,
    worlds,
)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What a test describes is not left behind in the language of ``parse``."""
    known = dict(Described.registry)
    yield
    Described.registry.clear()
    Described.registry.update(known)


class Thirds(cc.Compressor):
    """An honest third-party compressor, written the simple way: fp32 numbers cut to their upper 16 bits."""

    def section(self, numel: int) -> int:
        return 2 * numel

    def delta(self, numel: int) -> float | None:
        return 1.0 - 2.0**-13

    def encode(self, y: Tensor, segment: cc.Segment, rng: cc.Rng) -> Tensor:
        return y.contiguous().view(torch.uint8).view(-1, 4)[:, 2:].reshape(-1)

    def decode(self, code: Tensor, segment: cc.Segment, rng: cc.Rng) -> Tensor:
        low = torch.zeros(segment.numel, 2, dtype=torch.uint8)
        return torch.cat((low, code.view(segment.numel, 2)), 1).view(-1).view(torch.float32)


def _compressor(**methods: object) -> cc.Compressor:
    kind = type("Liar", (Thirds,), {"dense_below": 1, **methods})
    return dataclass(frozen=True, repr=False)(kind)()


def test_an_honest_compressor_passes() -> None:
    check_compressor(_compressor())


def test_what_is_no_compressor_is_told_so() -> None:
    for wrong in (cc.TopK, cc.Exact(), None):
        with pytest.raises(TypeError, match="give a compressor, made by its call"):
            check_compressor(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="give a reducer, made by its call"):
        check_reducer(cc.TopK(0.01))  # type: ignore[arg-type]


def test_a_section_of_another_length_is_explained() -> None:
    short = _compressor(section=lambda self, numel: numel)
    layout = cc.Layout.of([("w", (1, 10))])
    with pytest.raises(ValueError, match=r"gave 20 bytes for 10 elements, and section\(10\) says 10"):
        short.encode_(cc.Bucket(torch.ones(10), layout), cc.Rng())


@pytest.mark.slow
@pytest.mark.parametrize(
    "route",
    [
        pytest.param(cc.AllGather, marks=pytest.mark.full),
        pytest.param(cc.TwoPhase, marks=pytest.mark.full),
        pytest.param(lambda c: cc.ErrorFeedback(cc.AllGather(c)), marks=pytest.mark.full),
        lambda c: cc.ErrorFeedback(cc.TwoPhase(c)),
    ],
    ids=("gathered", "two-phase", "gathered under feedback", "two-phase under feedback"),
)
def test_an_honest_compressor_serves_every_route(route: Callable[[cc.Compressor], cc.Reducer]) -> None:
    check_reducer(route(_compressor()))


def _biased_noise(self: cc.Compressor, y: Tensor, segment: cc.Segment, rng: cc.Rng) -> Tensor:
    noise = torch.rand(len(y), generator=torch.Generator().manual_seed(hash((*rng, segment.name)) % 2**63))
    return Thirds.encode(self, y * (0.4 + 0.6 * noise), segment, rng)  # type: ignore[arg-type]


def _looks_at_its_neighbours(self: cc.Compressor, i: Inputs, *rest: object) -> None:
    i.x.div_(len(i.table))
    Thirds.encode_rows(self, i, *rest)  # type: ignore[arg-type]


def _leaves_bytes(self: cc.Compressor, i: Inputs, *rest: object) -> None:
    before = i.wire.clone()
    Thirds.encode_rows(self, i, *rest)  # type: ignore[arg-type]
    for _, _, numel, wire, *_ in i.table.tolist():
        i.wire[wire + 2 * numel : wire + 2 * numel + 4] = before[wire + 2 * numel : wire + 2 * numel + 4]


def _writes_a_header(self: cc.Compressor, i: Inputs, *rest: object) -> None:
    Thirds.encode_rows(self, i, *rest)  # type: ignore[arg-type]
    i.wire[0] = 1


def _shifts(self: cc.Compressor, y: Tensor, *rest: object) -> Tensor:
    return Thirds.encode(self, torch.where(y == 0, 0.01 * y.abs().max(), y), *rest)  # type: ignore[arg-type]


def _root(self: cc.Compressor, y: Tensor, *rest: object) -> Tensor:
    return Thirds.encode(self, y.sign() * y.abs().sqrt(), *rest)  # type: ignore[arg-type]


def _square(self: cc.Compressor, *rest: object) -> Tensor:
    y = Thirds.decode(self, *rest)  # type: ignore[arg-type]
    return y * y.abs()


COMPRESSORS: dict[str, tuple[Callable[[cc.Compressor], None], dict[str, object]]] = {
    "depend on the bucket": (buckets.treats_a_bucket_as_a_loop, {"encode_rows": _looks_at_its_neighbours}),
    "bytes outside": (payload.sends_the_bytes_it_declares, {"encode_rows": _writes_a_header}),
    "not every byte": (payload.sends_the_bytes_it_declares, {
        "section": lambda s, n: 2 * n + 4, "encode_rows": _leaves_bytes,
        "decode": lambda s, c, at, *a: torch.zeros(at.numel)}),
    "delta": (properties.never_exceeds_delta_or_omega, {"delta": lambda s, n: 1.0}),
    "is not in": (properties.never_exceeds_delta_or_omega, {"delta": lambda s, n: 1.5}),
    "was not seen to be": (properties.is_unbiased_as_declared, {
        "encode": lambda s, y, *a: y.view(torch.uint8), "section": lambda s, n: 4 * n,
        "decode": lambda s, c, at, *a: c.clone().view(torch.float32)}),
    "draws the same": (buckets.repeats_itself, {
        "unbiased": True, "omega": lambda s, n: 1.0, "delta": lambda s, n: None}),
    "off by": (properties.is_unbiased_as_declared, {
        "unbiased": True, "omega": lambda s, n: 1.0, "delta": lambda s, n: None, "encode": _biased_noise}),
    "omega": (properties.never_exceeds_delta_or_omega, {"omega": lambda s, n: 1.0}),
    "do not decode to their sum": (properties.is_linear_as_declared, {
        "linear": True, "dtype": torch.bfloat16, "delta": lambda s, n: 0.9, "encode": _root,
        "decode": _square}),
    r"section\(1\) says 5 bytes, encode gave 2": (payload.sends_the_bytes_it_declares, {
        "section": lambda s, n: 4 * n + 1}),
    "to NaN": (payload.keeps_what_it_did_not_send, {
        "decode": lambda s, c, at, *a: 1 / Thirds.decode(s, c, at, *a)}),
    "decodes zeros": (payload.keeps_what_it_did_not_send, {
        "decode": lambda s, c, at, *a: Thirds.decode(s, c, at, *a) + 1}),
    "zero_": (payload.can_clear_what_it_sent, {"zero_rows": lambda s, *a: None}),
    "a row of zeros comes as": (properties.keeps_rows_of_zeros, {
        "keeps_zeros": True, "delta": lambda s, n: None, "encode": _shifts}),
    "names no cure": (properties.settles_what_feedback_asks, {"delta": lambda s, n: None, "hint": ""}),
}  # fmt: skip


@pytest.mark.parametrize("fault", COMPRESSORS)
def test_a_compressor_that_lies_is_caught(fault: str) -> None:
    """By the check that is there for it, which is one of those that certify."""
    check, methods = COMPRESSORS[fault]
    assert check in COMPRESSOR_CHECKS
    with pytest.raises(ContractError, match=fault):
        check(_compressor(**methods))


def test_a_compressor_that_is_no_value_is_caught() -> None:
    @dataclass(repr=False, eq=False)
    class Loose(Described):
        bits: int = 1

    from compcomm.testing.description import is_a_value, is_its_own_call

    with pytest.raises(ContractError, match="not x"):
        is_its_own_call(Loose())
    Loose.__eq__ = lambda a, b: True  # type: ignore[method-assign, assignment]
    Loose.__hash__ = lambda a: 1  # type: ignore[method-assign, assignment]
    with pytest.raises(ContractError, match="can be set"):
        is_a_value(Loose())


INNER = cc.settle(cc.ErrorFeedback(cc.TopK(ratio=0.1)), 2)


class Wrapped(cc.Reducer):
    """Error feedback with top-k, but for one fault."""

    def _inner(self) -> cc.Reducer:
        return INNER

    traits = Traits(stateful=True)  # type: ignore[assignment]

    def exact(self, segment: cc.Segment) -> bool:
        return self._inner().exact(segment)

    def slots(self, segment: cc.Segment, world: int) -> Mapping[str, cc.Slot]:
        return self._inner().slots(segment, world)

    def reduce(self, source: Source, target: Target, state: State, ctx: cc.Context) -> Flow:
        return (yield from self._inner().reduce(source, target, state, ctx))


def _reducer(**methods: object) -> cc.Reducer:
    kind = type("Liar", (Wrapped,), methods)
    return dataclass(frozen=True, repr=False)(kind)()


@pytest.mark.slow
def test_an_honest_reducer_passes() -> None:
    check_reducer(_reducer())


Reduce = Callable[..., Flow]


def _before(change: Callable[[Source, State, cc.Context], object]) -> Reduce:
    """Feedback of an input that was changed."""

    def reduce(self: Wrapped, source: Source, target: Target, state: State, ctx: cc.Context) -> Flow:
        change(source, state, ctx)
        return (yield from Wrapped.reduce(self, source, target, state, ctx))

    return reduce


def _after(change: Callable[[cc.Reduced, Target, State, cc.Context], object]) -> Reduce:
    """Feedback that goes on to change something, or to return something else."""

    def reduce(self: Wrapped, source: Source, target: Target, state: State, ctx: cc.Context) -> Flow:
        result = yield from Wrapped.reduce(self, source, target, state, ctx)
        return change(result, target, state, ctx) or result

    return reduce


def _rank_specific(result: cc.Reduced, target: Target, state: State, ctx: cc.Context) -> None:
    if ctx.rank == 1 and target.out.flat.numel():
        target.out.flat[0] += 1e-7


def _drops_a_residual(result: cc.Reduced, target: Target, state: State, ctx: cc.Context) -> None:
    if ctx.step == 3:
        state["residual"].flat[:1] = 0


def _clips_by_name(result: cc.Reduced, target: Target, state: State, ctx: cc.Context) -> None:
    residual = state["residual"]
    for view in {s.name: residual.view(s) for s in residual.layout.segments}.values():  # one piece of each
        view.clamp_(-0.1, 0.1)


def _remembers_elsewhere(source: Source, state: State, ctx: cc.Context) -> None:
    memory = ctx.buffer("memory", source.x.flat.numel(), torch.float32)
    memory += source.x.flat
    source.x.flat.add_(memory, alpha=1e-3)


def _talks_when_it_likes(self: Wrapped, source: Source, target: Target, state: State, ctx: cc.Context) -> Flow:
    if not source.x.flat.is_meta and not source.x.flat.isfinite().all():
        yield from cc.Exact().reduce(source, Target(cc.Bucket(source.x.flat.clone(), source.layout)), state, ctx)
    return (yield from Wrapped.reduce(self, source, target, state, ctx))


def _keeps_the_infinite(self: Wrapped, source: Source, target: Target, state: State, ctx: cc.Context) -> Flow:
    gradient = source.x.flat.clone()
    result = yield from Wrapped.reduce(self, source, target, state, ctx)
    residual = state["residual"]
    for s in residual.layout.segments:
        at = source.x.layout.position(s)
        residual.view(s).view(-1).add_(gradient[at : at + s.numel], alpha=0.0)
    return result


REDUCERS: dict[str, tuple[Callable[[cc.Reducer], None], dict[str, object]]] = {
    "holds another mean": (worlds.gives_every_rank_the_same_mean, {"reduce": _after(_rank_specific)}),
    "miss the sum": (conservation.applies_nothing_of_a_bad_step, {
        "reduce": _after(lambda result, *_: cc.Reduced(result.sent, result.error))}),
    "miss the sum .* after 12": (conservation.loses_nothing_over_many_steps, {
        "reduce": _after(_drops_a_residual)}),
    "some ranks are done|different collectives|where the dry run": (
        conservation.applies_nothing_of_a_bad_step, {"reduce": _talks_when_it_likes}),
    "when buckets are": (worlds.does_not_depend_on_how_buckets_are_cut, {
        "reduce": _before(lambda source, _, ctx: source.x.flat.mul_(1 + ctx.bucket * 1e-3))}),
    "another mean than two ranks": (worlds.averages_nodes_like_ranks, {
        "reduce": _before(lambda source, *_: source.x.flat.mul_(1 + len(source.layout.segments) * 1e-3))}),
    "depends on the piece beside it, in step 0: go over": (pieces.treats_pieces_alone, {
        "reduce": _after(_clips_by_name)}),
    "slot 'residual' of 'head' is not finite after the bad step 2: give back in undo": (
        conservation.applies_nothing_of_a_bad_step, {"reduce": _keeps_the_infinite}),
    "continues differently": (state.resumes_bit_for_bit, {"reduce": _before(_remembers_elsewhere)}),
    "without a gradient move": (worlds.leaves_rows_of_zeros, {
        "reduce": _after(lambda _, target, *__: target.out.flat.add_(1e-12) is None)}),
    "is bad: True": (conservation.applies_nothing_of_a_bad_step, {
        "reduce": _before(lambda source, *_: source.x.flat.nan_to_num_(0.0, 0.0, 0.0))}),
    "is called exact": (worlds.averages_what_it_can_send_whole, {"exact": lambda self, segment: True}),
    "loses": (worlds.loses_no_more_than_it_says, {
        "promises": lambda self, segment: Promises(0.99), "_inner": lambda self: cc.AllGather(cc.TopK(ratio=0.1))}),
}  # fmt: skip


@pytest.mark.parametrize("fault", REDUCERS)
def test_a_reducer_that_lies_is_caught(fault: str) -> None:
    check, methods = REDUCERS[fault]
    assert check in REDUCER_CHECKS
    with pytest.raises((ContractError, RuntimeError), match=fault):
        check(_reducer(**methods))
