"""Bad input is refused at construction, with the call, the value, the reason and the cure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import compcomm as cc
from compcomm.core.source import Source, Target
from compcomm.core.state import State
from compcomm.hosts.joining import patience

TWO = cc.Simulator(cc.Exact(), 2)
CASES: list[tuple[Callable[[], object], list[str]]] = [
    (lambda: cc.TopK(ratio=0.0), ["TopK(ratio=0.0)", "(0, 1]", "share of the elements"]),
    (lambda: cc.TopK(ratio=1.5), ["TopK(ratio=1.5)", "(0, 1]"]),
    (lambda: cc.TopK(ratio=-0.1), ["ratio=-0.1", "(0, 1]"]),
    (lambda: cc.TopK(ratio=float("nan")), ["ratio=nan", "(0, 1]"]),
    (lambda: cc.TopK(), ["TopK()", "either ratio", "or k"]),
    (lambda: cc.TopK(ratio=0.1, k=3), ["either ratio", "or k"]),
    (lambda: cc.TopK(k=0), ["TopK(k=0)", "positive number of elements"]),
    (lambda: cc.TopK(k=True), ["k=True", "positive number"]),
    (lambda: cc.TopK(k=1.5), ["TopK(k=1.5)", "positive number"]),
    (lambda: cc.QSGD(bits=4.0), ["QSGD(bits=4.0)", "whole numbers"]),
    (lambda: cc.QSGD(levels=2.5), ["QSGD(levels=2.5)", "whole numbers"]),
    (lambda: cc.QSGD(bits=True), ["QSGD(bits=True)", "whole numbers"]),
    (lambda: cc.SignScale(block=512.0), ["block=512.0", "multiple of 16"]),
    (lambda: cc.RandK(ratio=2), ["RandK(ratio=2)", "(0, 1]"]),
    (lambda: cc.RandK(k=-1), ["RandK(k=-1)", "positive"]),
    (
        lambda: cc.TopK(k=2000).kept(1500),
        ["TopK(k=2000)", "k=2000 exceeds", "1500 elements", "Use ratio", "dense_below"],
    ),
    (lambda: cc.QSGD(), ["QSGD()", "bits", "levels"]),
    (lambda: cc.QSGD(bits=4, levels=7), ["bits=4, levels=7", "either"]),
    (lambda: cc.QSGD(bits=1), ["bits=1", "only a sign", "Use SignScale()"]),
    (lambda: cc.QSGD(bits=0), ["bits=0", "outside 2 to 8"]),
    (lambda: cc.QSGD(bits=9), ["bits=9", "outside 2 to 8", "Use Cast(bfloat16)"]),
    (lambda: cc.QSGD(levels=0), ["levels=0", "outside 1 to 127"]),
    (lambda: cc.QSGD(levels=128), ["levels=128", "outside 1 to 127"]),
    (lambda: cc.QSGD(bits=4, norm=1), ["norm=1", "neither 2 nor inf"]),
    (lambda: cc.QSGD(bits=4, rounding="up"), ["rounding='up'", "'stochastic'", "'nearest'"]),
    (lambda: cc.QSGD(bits=4, block=100), ["block=100", "multiple of 16"]),
    (lambda: cc.QSGD(bits=4, block=0), ["block=0", "multiple of 16"]),
    (lambda: cc.SignScale(scale="max"), ["SignScale(scale='max')", "'l1'", "'l2'"]),
    (lambda: cc.SignScale(block=8), ["block=8", "multiple of 16"]),
    (lambda: cc.Cast(torch.float64), ["Cast(", "float64", "torch.bfloat16", "torch.float16"]),
    (lambda: cc.Contractive(cc.TopK(ratio=0.1)), ["Contractive(TopK(ratio=0.1))", "only an unbiased"]),
    (
        lambda: cc.AllReduce(cc.TopK(ratio=0.01)),
        ["AllReduce(TopK(ratio=0.01))", "cannot be summed", "Use AllGather(TopK(...))", "RandK"],
    ),
    (lambda: cc.AllReduce(cc.QSGD(bits=4)), ["AllReduce(QSGD(bits=4))", "cannot be summed", "TwoPhase(QSGD(...))"]),
    (lambda: cc.AllGather(cc.Exact()), ["AllGather(Exact())", "a compressor is needed"]),
    (lambda: cc.TwoPhase(3), ["TwoPhase(3)", "a compressor is needed"]),
    (lambda: cc.TwoPhase(cc.SignScale(), server=True), ["server=True", "ErrorFeedback", "False"]),
    (
        lambda: cc.TwoPhase(cc.QSGD(bits=4), server=cc.ErrorFeedback),
        ["server=ErrorFeedback", "use Contractive(QSGD(bits=4))"],
    ),
    (
        lambda: cc.TwoPhase(cc.SignScale("l2"), server=cc.ErrorFeedback),
        ["SignScale(scale='l2')", "no contraction", "Use"],
    ),
    (
        lambda: cc.ErrorFeedback(cc.SignScale(scale="l2")),
        ["ErrorFeedback(SignScale(scale='l2'))", "no contraction", "residual may grow", "Use SignScale(scale='l1')"],
    ),
    (lambda: cc.ErrorFeedback(cc.SignScale(scale="l2")), ["ErrorFeedback(Unproven(SignScale(scale='l2')))"]),
    (lambda: cc.PowerSGD(0), ["PowerSGD(0): the rank is an integer"]),
    (lambda: cc.PowerSGD(2, error="all"), ["PowerSGD(2, error='all'): error is one of 'aggregate', 'local'"]),
    (lambda: cc.settle("TopK(.1)", 2), ["settle('TopK(.1)', 2)", "no reducer", "cc.parse(text)"]),  # type: ignore[arg-type]
    (
        lambda: cc.cost(cc.Exact(), torch.nn.Linear(2, 2), 2),  # type: ignore[arg-type]
        ["cost(Exact(), Linear, 2)", "cc.Layout.of(model.named_parameters())"],
    ),
    (lambda: TWO.mean({"w": torch.ones(2)}), ["Simulator.mean(dict)", "one dictionary", "2 ranks"]),  # type: ignore[arg-type]
    (lambda: TWO.mean([torch.ones(2)] * 2), ["Simulator.mean([Tensor, ...])", "one dictionary"]),  # type: ignore[list-item]
    (
        lambda: TWO.mean([{"w": torch.ones(2)}, {"w": torch.ones(3)}]),
        ["rank 1 has 'w' as [3], [2] on rank 0", "equal shapes"],
    ),
    (
        lambda: TWO.step([[cc.Bucket(torch.ones(2), cc.Layout.of([("w", (n,))]))] for n in (2, 3)]),
        ["Simulator.step: rank 1 has buckets of [Layout(1 segments, 3 elements)]", "the same buckets"],
    ),
    (
        lambda: TWO.step([[cc.Bucket(torch.ones(n), cc.Layout.of([("w", (2,))]))] for n in (2, 3)]),
        ["Simulator.step: bucket 0 of rank 1 has a tensor of shape [3]", "flat one of 2"],
    ),
    (lambda: patience("60"), ["attach: timeout='60'", "number of seconds"]),  # type: ignore[arg-type]
    (lambda: patience(float("nan")), ["attach: timeout=nan is not a positive time"]),
    (
        lambda: cc.ErrorFeedback(cc.Cast(torch.float16)),
        ["ErrorFeedback(Cast(float16))", "no contraction", "Use Cast(bfloat16)"],
    ),
    (lambda: cc.ErrorFeedback(cc.QSGD(bits=4, norm=2, rounding="nearest")), ["no contraction", "norm=inf"]),
    (lambda: cc.ErrorFeedback(cc.AllGather(cc.SignScale("l2"))), ["SignScale(scale='l2')", "no contraction", "Use"]),
    (
        lambda: cc.ErrorFeedback(cc.Warmup(3, cc.TopK(ratio=0.1))),
        [
            "ErrorFeedback(Warmup(3",
            "gives no error to feed back",
            "Use Warmup(3, ErrorFeedback(TopK(ratio=0.1)))",
        ],
    ),
    (
        lambda: cc.ErrorFeedback(cc.Partition({"*": cc.TopK(ratio=0.1)})),
        ["Partition", "Put the feedback around each part"],
    ),
    (
        lambda: cc.ErrorFeedback(cc.ErrorFeedback(cc.TopK(ratio=0.1))),
        ["ErrorFeedback(ErrorFeedback(", "error to feed back"],
    ),
    (lambda: cc.ErrorFeedback(0.1), ["ErrorFeedback(0.1)", "give a compressor or a reducer"]),
    (lambda: cc.ErrorFeedback(cc.Warmup(3, cc.PowerSGD(rank=2))), ["PowerSGD inside: It has feedback already"]),
    (lambda: cc.Warmup(-1, cc.Exact()), ["Warmup(steps=-1)", "0 or more"]),
    (lambda: cc.Warmup(1.5, cc.Exact()), ["Warmup(steps=1.5)", "integer"]),
    (lambda: cc.Warmup(1, "TopK"), ["Warmup(1, 'TopK')", "give a compressor or a reducer"]),
    (lambda: cc.ErrorFeedback(cc.ErrorFeedback(cc.TopK(ratio=0.1))), ["has feedback already"]),
    (lambda: cc.TopK(ratio="0.1"), ["TopK(ratio='0.1')", "(0, 1]"]),  # type: ignore[arg-type]
    (lambda: cc.TopK(ratio=True), ["ratio=True", "(0, 1]"]),
    (lambda: cc.TopK(ratio=0.1, dense_below=-5), ["dense_below=-5", "0 codes everything"]),
    (lambda: cc.RandK(ratio=0.1, unbiased="yes"), ["unbiased='yes'", "neither True nor False"]),  # type: ignore[arg-type]
    (lambda: cc.QSGD(bits=4, norm="inf"), ["norm='inf'", "neither 2 nor inf"]),  # type: ignore[arg-type]
    (lambda: cc.settle(cc.SignScale(), 0), ["world=0", "1 or more"]),
    (lambda: cc.cost(cc.TopK(k=5000), cc.Layout.of([("w", (64, 64))]), 2), ["'w'", "k=5000", "4096 elements"]),
    (lambda: cc.Partition({"a": cc.Exact()}).parts.update({}), ["fixed"]),  # type: ignore[attr-defined]
    (lambda: cc.Layout([cc.Segment("a", (4,), 0, 4), cc.Segment("b", (4,), 3, 7)]), ["'a'", "'b'", "overlap"]),
    (lambda: cc.parse("TopK"), ["name alone", "TopK(...)"]),
    (lambda: cc.parse(None), ["parse(None)", "a text is needed"]),  # type: ignore[arg-type]
    (lambda: cc.Partition({}), ["Partition({})", "{pattern: reducer}"]),
    (lambda: cc.Partition({"a": 3}), ["'a'", "3", "name pattern with a reducer"]),
    (
        lambda: cc.Partition({"a*": cc.Exact()}).exact(cc.Segment("b", (3,), 0, 3)),
        ["no pattern matches 'b'", "Add a last pattern"],
    ),
]


@pytest.mark.parametrize(("make", "words"), CASES, ids=lambda v: v[0] if isinstance(v, list) else "")
def test_bad_input(make: Callable[[], object], words: list[str]) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def test_feedback_shrinks_what_is_unbiased() -> None:
    assert cc.ErrorFeedback(cc.QSGD(bits=4)).reducer == cc.Contractive(cc.QSGD(bits=4))
    inner = cc.ErrorFeedback(cc.TwoPhase(cc.RandK(ratio=0.1, unbiased=True))).reducer
    assert inner == cc.TwoPhase(cc.Contractive(cc.RandK(ratio=0.1, unbiased=True)))
    for kept in (cc.TopK(ratio=0.1), cc.SignScale(), cc.QSGD(bits=4, rounding="nearest"), cc.Cast(torch.bfloat16)):
        assert cc.ErrorFeedback(kept).reducer == kept


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_the_route_fits_the_compressor(world: int) -> None:
    dense = cc.AllGather if world <= 2 else cc.TwoPhase
    assert cc.settle(cc.RandK(ratio=0.1), world) == cc.AllReduce(cc.RandK(ratio=0.1))
    assert cc.settle(cc.TopK(ratio=0.1), world) == cc.AllGather(cc.TopK(ratio=0.1))
    for c in (cc.QSGD(bits=4), cc.SignScale(), cc.Cast(torch.bfloat16)):
        assert cc.settle(c, world) == dense(c)
    inside = cc.settle(cc.Warmup(1, cc.Partition({"a": cc.SignScale(), "*": cc.Exact()})), world)
    assert inside == cc.Warmup(1, cc.Partition({"a": dense(cc.SignScale()), "*": cc.Exact()}))
    feedback = cc.settle(cc.ErrorFeedback(cc.SignScale()), world)
    if world > 2:
        assert feedback == cc.ErrorFeedback(cc.TwoPhase(cc.SignScale(), server=cc.ErrorFeedback))
        assert "server=ErrorFeedback" in repr(feedback)
    assert cc.settle(feedback, world) == feedback


def test_feedback_takes_gradients_only() -> None:
    layout = cc.Layout.of([("w", (2, 2))])
    reducer = cc.settle(cc.ErrorFeedback(cc.TopK(ratio=0.5)), 1)
    x = cc.Bucket(torch.zeros(4), layout)
    flow = reducer.reduce(Source(x, x), Target(x), State(cc.Store(reducer), layout), cc.Context())
    with pytest.raises(TypeError, match="holds its own memory"):
        next(flow)


def test_an_unsettled_reducer_says_so() -> None:
    with pytest.raises(TypeError, match=r"no route yet. Call settle\(reducer, world\) first"):
        cc.ErrorFeedback(cc.TopK(ratio=0.1)).slots(cc.Segment("w", (99, 99), 0, 99 * 99), 2)


def test_k_above_a_parameters_size_is_found_before_the_first_step() -> None:
    with pytest.raises(ValueError, match=r"TopK\(k=5000\): k=5000 exceeds a parameter of 1600 elements"):
        cc.cost(cc.ErrorFeedback(cc.TopK(k=5000)), cc.Layout.of([("w", (40, 40))]), 2)
