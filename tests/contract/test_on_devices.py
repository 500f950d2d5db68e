"""Whole methods on the path of GPUs, in Triton's interpreter: to the bit what the path of CPUs gives.

Three steps of two simulated ranks, one of them bad on one rank, and a parameter that has a gradient in the first alone.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.ops import backend
from compcomm.transports.simulator import Simulator

LAYOUT = cc.Layout.of([("a", (40, 30)), ("b", (17,)), ("idle", (33, 40))])


def with_full(reducer: str) -> object:
    """What another line covers as well."""
    return pytest.param(reducer, marks=pytest.mark.full)


EQUAL = [
    with_full("Exact()"),
    with_full("QSGD(bits=4)"),
    with_full("ErrorFeedback(TopK(ratio=0.05))"),
    "ErrorFeedback(TwoPhase(QSGD(bits=4, rounding='nearest')), dtype=int8, average=0.5)",
    with_full("AllReduce(RandK(ratio=0.1))"),
    "SharedScale(QSGD(bits=4))",
    with_full("EF21(SignScale())"),
    "EF21(TwoPhase(TopK(ratio=0.05)))",
    "EControl(TopK(ratio=0.05), eta=0.3)",
    "DGC(TopK(ratio=0.05), momentum=0.9, warmup=0)",
    with_full("DGC(TopK(ratio=0.05), momentum=0.9, clip=1.0, nesterov=True, warmup=0)"),
    "ErrorFeedback(SparseAllReduce(TopK(ratio=0.05)))",
    "Partition({'a': ErrorFeedback(TopK(k=9)), '*': TwoPhase(SignScale())})",
]
CLOSE = [  # sums of other orders; rotated messages are turned back one by one where rows may be zero
    with_full("PowerSGD(2)"),
    "PowerSGD(2, alternate=True)",
    with_full("Rotated(QSGD(bits=4), block=256)"),
]


def train(reducer: str, wanted: str) -> tuple[list[Tensor], list[bool], list[Tensor]]:
    """Both ranks' means, which steps were bad, and all memory at the end."""
    draw = torch.Generator().manual_seed(0)
    with backend(wanted):
        simulator = Simulator(cc.parse(reducer), 2)
        means: list[Tensor] = []
        bad: list[bool] = []
        for step in range(3):
            given = [torch.randn(LAYOUT.numel, generator=draw) for _ in range(2)]
            if step > 0:
                for flat in given:
                    flat[LAYOUT.segments[2].start :] = 0.0
            if step == 1:
                given[1][5] = float("inf")
            found = simulator.step([[cc.Bucket(flat, LAYOUT)] for flat in given])
            means += [buckets[0].flat.clone() for buckets in found]
            bad.append(simulator.bad)
        memory = [entry.tensor.clone() for store in simulator.stores for entry in store.entries()]
    return means, bad, memory


def bits(tensors: list[Tensor]) -> list[Tensor]:
    return [t.contiguous().view(torch.uint8) for t in tensors]


@pytest.mark.slow
@pytest.mark.parametrize("reducer", EQUAL)
def test_equals_the_path_of_cpus(reducer: str) -> None:
    means, bad, memory = train(reducer, "native")
    found = train(reducer, "triton")
    assert found[1] == bad == [False, True, False]
    assert all(torch.equal(a, b) for a, b in zip(bits(means), bits(found[0]), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(bits(memory), bits(found[2]), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("reducer", CLOSE)
def test_is_close_where_sums_have_another_order(reducer: str) -> None:
    means, bad, memory = train(reducer, "native")
    found = train(reducer, "triton")
    assert found[1] == bad == [False, True, False]
    for a, b in zip([*means, *memory], [*found[0], *found[2]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
