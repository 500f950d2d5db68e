"""The pipeline by hand, and what a step is made of."""

from __future__ import annotations

import pytest
import torch

import compcomm as cc
from compcomm.plan.cost import collectives
from compcomm.plan.kernels import Kernels, Stages, calibrate, grown
from compcomm.plan.link import Link
from compcomm.plan.schedule import pipeline
from compcomm.plan.step import predict

LAYOUTS = tuple(cc.Layout.of([(f"p{i}", (1000, 1000))]) for i in range(3))


def test_the_schedule_by_hand() -> None:
    assert pipeline([2.0], [[1.0, 0.5]], [[4.0]]) == [7.5]
    # two rounds: A is coded until 1, on the wire until 3; B is coded until 2, on the wire until 5; A is coded again
    # until 4, on the wire until 7, decoded until 8; only then is B coded again, until 9, on the wire until 11
    assert pipeline([0.0, 0.0], [[1.0] * 3, [1.0] * 3], [[2.0, 2.0], [2.0, 2.0]]) == [8.0, 12.0]
    # plain sums: one after the other on the wire, none waits for another's decoding
    assert pipeline([0.0, 0.0, 0.0], [[0.0, 0.0]] * 3, [[2.0]] * 3, native=True) == [2.0, 4.0, 6.0]
    assert pipeline([0.0, 5.0], [[0.0, 0.0]] * 2, [[2.0]] * 2, native=True, threaded=False)[-1] == 7.0


def test_a_step_is_forward_and_the_longer_of_backward_and_communication() -> None:
    fast, slow = Link.of("100gbit"), Link.of("100mbit")
    hidden = predict(None, LAYOUTS, 4, fast, Kernels(), 3.0)
    assert hidden.seconds == pytest.approx(3.0, abs=2e-3) and hidden.exposed < 2e-3
    bound = predict(None, LAYOUTS, 4, slow, Kernels(), 0.3)
    wire = 8 * 3 * 6e6 / 1e8
    assert bound.wire == pytest.approx(wire)
    assert bound.seconds == pytest.approx(0.1 + 0.2 / 3 + wire), "the wire begins with the first bucket and never rests"
    assert bound.sent == bound.dense == 18_000_000 and bound.ratio == 1.0
    early = predict(None, LAYOUTS, 4, slow, Kernels(), 0.3, arrivals=[0.0, 0.0, 0.0])
    assert early.seconds == pytest.approx(0.1 + wire)


def test_decoding_grows_with_the_workers_only_where_it_reads_more() -> None:
    reducer, layout = cc.settle(cc.TopK(0.01), 64), cc.Layout.of([("p", (100, 1000))])
    received = {w: collectives(reducer, layout, w)[0].nbytes for w in (4, 8)}
    slope = 4e-4 / (received[8] - received[4])
    gathered = Kernels(Stages(4, 100_000, (1e-3, 5e-4), (0, received[4])), (0.0, slope))
    assert gathered.seconds(reducer, layout, 8) == pytest.approx((1e-3, 9e-4))
    assert gathered.seconds(reducer, layout, 64) == pytest.approx((1e-3, 65e-4))
    assert gathered.seconds(reducer, layout, 2) == pytest.approx((1e-3, 3e-4)), "and shrinks"
    shared = Kernels(Stages(4, 1000, (1e-3, 1e-3, 1e-3), (0, 500, 500)))
    phases = cc.settle(cc.QSGD(bits=4), 64)
    assert shared.seconds(phases, layout, 64) == shared.seconds(phases, layout, 8) == (0.1, 0.1, 0.1)


def test_calibration_runs_every_stage_and_sees_the_gather_grow() -> None:
    shapes = [cc.Layout.of([("a", (400, 1000)), ("b", (50,))])]
    for world in (2, 64):
        found = calibrate(cc.settle(cc.ErrorFeedback(cc.TopK(0.01)), world), shapes, world)
        assert found.measured is not None and found.measured.world == min(4, world)
        assert len(found.growth) == 2 and found.growth[0] == 0
        assert 0 < found.growth[1] < 1e-6, "seconds per byte, never less than a copy takes"
    for reducer, stages in ((cc.Cast(torch.bfloat16), 3), (cc.PowerSGD(2), 3), (cc.Exact(), 2)):
        one = calibrate(cc.settle(reducer, 64), shapes, 64)
        assert one.measured is not None and len(one.measured.seconds) == stages and one.measured.world == 4
        assert all(s > 0 for s in one.measured.seconds) and not one.growth
    assert calibrate(None, shapes, 64) == Kernels() == grown(Kernels(), None, shapes)


def test_what_was_measured_between_two_ranks_still_grows_with_the_workers() -> None:
    """Curves over the number of workers begin at a plan for two as they do at one for 64."""
    shapes = [cc.Layout.of([("a", (400, 1000))])]
    gather, phases = cc.settle(cc.ErrorFeedback(cc.TopK(0.01)), 2), cc.settle(cc.TwoPhase(cc.QSGD(bits=4)), 2)
    received = collectives(gather, shapes[0], 2)[0].nbytes
    found = grown(Kernels(Stages(2, 400_000, (1e-3, 1e-4), (0, received))), gather, shapes)
    many = found.seconds(gather, shapes[0], 4096)[1]
    assert many > 4094 * received / 2 * found.growth[1] * 0.99 > 1e-4
    flat = Kernels(Stages(2, 400_000, (1e-3, 1e-4, 1e-4), (0, 500, 500)))
    assert grown(flat, phases, shapes) == flat
