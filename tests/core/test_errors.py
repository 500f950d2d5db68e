"""Bad input is refused at construction, with the call, the value, the reason and the cure."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.core.source import Source, Target
from compcomm.core.state import State
from compcomm.hosts.joining import patience
from tests.refusals import refusals, refused


@refusals(
    """
TopK(ratio=$) => TopK(ratio=$) | (0, 1] | share of the elements for $ in 0.0; 1.5; -0.1; nan; True; '0.1'
TopK() => TopK() | either ratio | or k
TopK(ratio=0.1, k=3) => either ratio | or k
TopK(k=$) => TopK(k=$) | positive number of elements for $ in 0; True; 1.5
QSGD($) => QSGD($) | whole numbers for $ in bits=4.0; levels=2.5; bits=True
SignScale(block=$) => block=$ | multiple of 16 for $ in 512.0; 8
RandK(ratio=2) => RandK(ratio=2) | (0, 1]
RandK(k=-1) => RandK(k=-1) | positive
TopK(k=2000).kept(1500) => TopK(k=2000) | k=2000 exceeds | 1500 elements | Use ratio | dense_below
QSGD() => QSGD() | bits | levels
QSGD(bits=4, levels=7) => bits=4, levels=7 | either
QSGD(bits=1) => bits=1 | only a sign | Use SignScale()
QSGD(bits=0) => bits=0 | outside 2 to 8
QSGD(bits=9) => bits=9 | outside 2 to 8 | Use Cast(bfloat16)
QSGD(levels=$) => levels=$ | outside 1 to 127 for $ in 0; 128
QSGD(bits=4, norm=$) => norm=$ | neither 2 nor inf for $ in 1; 'inf'
QSGD(bits=4, rounding='up') => rounding='up' | 'stochastic' | 'nearest'
$(bits=4, block=100) => block=100 | multiple of 16 for $ in QSGD; MinMax
QSGD(bits=4, block=0) => block=0 | multiple of 16
SignScale(scale='max') => SignScale(scale='max') | 'l1' | 'l2'
Cast(torch.float64) => Cast( | float64 | torch.bfloat16 | torch.float16
Contractive(TopK(ratio=0.1)) => Contractive(TopK(ratio=0.1)) | only an unbiased
AllReduce(TopK(ratio=0.01)) => AllReduce(TopK(ratio=0.01)) | cannot be summed | Use AllGather(TopK(...)) | RandK
AllReduce(QSGD(bits=4)) => AllReduce(QSGD(bits=4)) | cannot be summed | TwoPhase(QSGD(...))
AllGather(Exact()) => AllGather(Exact()) | a compressor is needed
TwoPhase(3) => TwoPhase(3) | a compressor is needed
TwoPhase(SignScale(), server=True) => server=True | ErrorFeedback | False
TwoPhase(QSGD(bits=4), server=ErrorFeedback) => server=ErrorFeedback | use Contractive(QSGD(bits=4))
TwoPhase(SignScale('l2'), server=ErrorFeedback) => SignScale(scale='l2') | no contraction | Use
ErrorFeedback(SignScale(scale='l2'))
    => ErrorFeedback(SignScale(scale='l2')) | no contraction | residual may grow | Use SignScale(scale='l1')
ErrorFeedback(SignScale(scale='l2')) => ErrorFeedback(Unproven(SignScale(scale='l2')))
settle('TopK(.1)', 2) => settle('TopK(.1)', 2) | no reducer | cc.parse(text)
cost(Exact(), torch.nn.Linear(2, 2), 2) => cost(Exact(), Linear, 2) | cc.Layout.of(model.named_parameters())
TWO.mean({'w': torch.ones(2)}) => Simulator.mean(dict) | one dictionary | 2 ranks
TWO.mean([torch.ones(2)] * 2) => Simulator.mean([Tensor, ...]) | one dictionary
TWO.mean([{'w': torch.ones(2)}, {'w': torch.ones(3)}]) => rank 1 has 'w' as [3], [2] on rank 0 | equal shapes
TWO.step([[Bucket(torch.ones(2), Layout.of([('w', (n,))]))] for n in (2, 3)])
    => Simulator.step: rank 1 has buckets of [Layout(1 segments, 3 elements)] | the same buckets
TWO.step([[Bucket(torch.ones(n), Layout.of([('w', (2,))]))] for n in (2, 3)])
    => Simulator.step: bucket 0 of rank 1 has a tensor of shape [3] | flat one of 2
patience('60') => attach: timeout='60' | number of seconds
patience(nan) => attach: timeout=nan is not a positive time
ErrorFeedback(QSGD(bits=4, norm=2, rounding='nearest')) => no contraction | norm=inf
ErrorFeedback(Warmup(3, PowerSGD(rank=2))) => PowerSGD inside: It has feedback already
Warmup(-1, Exact()) => Warmup(steps=-1) | 0 or more
Warmup(1.5, Exact()) => Warmup(steps=1.5) | integer
Warmup(1, 'TopK') => Warmup(1, 'TopK') | give a compressor or a reducer
TopK(ratio=0.1, dense_below=-5) => dense_below=-5 | 0 codes everything
RandK(ratio=0.1, unbiased='yes') => unbiased='yes' | neither True nor False
settle(SignScale(), 0) => world=0 | 1 or more
Partition({'a': Exact()}).parts.update({}) => fixed
Layout([Segment('a', (4,), 0, 4), Segment('b', (4,), 3, 7)]) => 'a' | 'b' | overlap
parse('TopK') => name alone | TopK(...)
parse(None) => parse(None) | a text is needed
Partition({}) => Partition({}) | {pattern: reducer}
Partition({'a': 3}) => 'a' | 3 | name pattern with a reducer
Partition({'a*': Exact()}).exact(Segment('b', (3,), 0, 3)) => no pattern matches 'b' | Add a last pattern
Unproven($) => Unproven | $ | Use $. for $ in TopK(ratio=0.1); SignScale(); Unproven(SignScale(scale='l2'))
Unproven(QSGD(bits=4)) => Unproven | QSGD(bits=4) | Use Contractive(QSGD(bits=4)).
Unproven(Exact()) => Unproven | Exact() is no compressor.
LloydMax($) => bits=$ is outside (0, 8] for $ in 0; 8.5
LloydMax(8.5) => Cast
LloydMax($) => not a number for $ in True; '2'
LloydMax(2, 'l2') => neither 'mse' nor 'dot'
$ => multiple of 16 for $ in LloydMax(2, block=40); TernGrad(block=40); TwoMeans(block=40)
Grid(2.5) => LloydMax
Grid(9) => from 1 to 8
SignScale('mse') => none of 'l1', 'l2' and 'dot'
ErrorFeedback(LloydMax(2, 'dot')) => Use scale='mse'
ErrorFeedback(SignScale('dot')) => Use SignScale
MinMax($) => 1 to 8 for $ in 0; 2.5
MinMax(9) => Use Cast
MinMax(4, 'up') => neither 'stochastic' nor 'nearest'
MinMax(4, dense_below=-1) => dense_below
ErrorFeedback(MinMax(4, 'nearest')) => Use rounding='stochastic'
TernGrad(clip=$) => clip=$ is not a finite number from 1 on | Use clip=2.5, or None for $ in 0.5; 0; inf; nan; '2'
Sketch($) => give either size for $ in ; 3, 0.5
Sketch($) => size=$ is not a number of sums for $ in 0; 2.5
Sketch(ratio=$) => ratio=$ is not in (0, 1] for $ in 0.0; 2
Sketch(9, kind='ams') => kind='ams' is none of 'srht', 'count', 'gaussian'
Sketch(9, block=100) => block=100 is not a power of two
Sketch(9, dense_below=-1) => dense_below=-1
Sketch(9).section(8) => size=9 exceeds a parameter of 8 elements. Use ratio
Sketch(ratio=0.5, kind='gaussian').section(1 << 20) => over the limit | Use kind='srht'
Threshold(ratio=$) => Threshold( | ratio=$ is not in for $ in 0.0; 1.5; True
Threshold(ratio=0.1, fit='normal') => fit='normal' is no distribution. Choose one of exponential, pareto, gamma
Threshold(ratio=0.1, stages=$) => stages=$ is not in 1..4 for $ in 0; 5; True
Threshold(ratio=0.1, capacity=$) => capacity=$ is not a multiple of the target, 1 or above for $ in 0.9; inf
Threshold(ratio=0.1, dense_below=-1) => dense_below=-1
TopK(ratio=0.1, select='best') => select='best' is no selection. Choose 'exact' or 'sampled'
Rotated(SignScale(), $) => Rotated(SignScale(), block=$) | is not a power of two from 16
    for $ in 0; 15; 48; 8; 2097152; 64.0; True
Rotated(Rotated(SignScale())) => one random rotation is as good as two. Use Rotated
Rotated(Exact()) => is no compressor
ErrorFeedback(Rotated(SignScale('l2'))) => no contraction | Use SignScale
BlockTopK(0) => ratio=0 is not in (0, 1]
BlockRandK(0.1, block=0) => block=0 is not a positive number of elements
BlockRandK(0.1, unbiased=1) => unbiased=1 is neither
ChunkedTopK($) => is not a number of elements of a chunk, 1 to 4096 for $ in 0; 4097; 2.5; True
ChunkedTopK(values=torch.int8) => values bfloat16, float16 or float32
settle(ErrorFeedback(ChunkedTopK(values=torch.float16)), 2)
    => ErrorFeedback | no contraction | Use values=bfloat16 or float32
SparseAllReduce(SignScale()) => Use SparseAllReduce(TopK(ratio=0.01))
SparseAllReduce(TopK(k=30)) => Use ratio
""",
    TWO=cc.Simulator(cc.Exact(), 2),
    patience=patience,
)
def test_bad_input(call: Any, words: list[str]) -> None:
    refused(call, *words)


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
