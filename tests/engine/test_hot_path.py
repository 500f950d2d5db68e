"""What a step costs in Python does not depend on how many parameters a bucket has."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch

import compcomm as cc
from compcomm.core.context import Arena, Context
from compcomm.core.reducer import flow
from compcomm.core.source import Source, Target
from compcomm.core.state import State, Store
from compcomm.routes.choose import settle

PACKAGE = str(Path(cc.__file__).parent)
REDUCERS = (
    "Exact()",
    "AllReduce(RandK(ratio=0.1))",
    "AllReduce(Sketch(ratio=0.1))",
    "ErrorFeedback(TopK(ratio=0.1))",
    "ErrorFeedback(TwoPhase(TopK(ratio=0.1)))",
    "EF21(TopK(ratio=0.1))",
    "EControl(TopK(ratio=0.1))",
    "DGC(TopK(ratio=0.1))",
    "Partition({'w*': ErrorFeedback(QSGD(bits=4)), '*': Exact()})",
    "PowerSGD(rank=2)",
    "PowerSGD(rank=2, alternate=True)",
    "SharedScale(QSGD(bits=4))",
    "Warmup(2, ErrorFeedback(SignScale()))",
)


def stepper(reducer: cc.Reducer, pairs: int, *, row: bool = False) -> Callable[[int], None]:
    """One step of one rank after the other: its weights are coded, its biases travel exact. ``row``: of two ranks, of
    which the other sends nothing."""
    world = 1 + row
    layout = cc.Layout.of(
        (f"{kind}{i}", shape) for i in range(pairs) for kind, shape in (("w", (16, 64)), ("b", (64,)))
    )
    settled, arena = settle(reducer, world), Arena()
    store = Store(settled, 0, world)
    store.declare(layout)
    x = cc.Bucket(torch.empty(layout.numel), layout)
    rows = layout.rows(world)
    assert rows is not None
    source, target, state = Source(x), Target(cc.Bucket(x.flat, rows[0])), State(store, layout)

    def step(number: int) -> None:
        x.flat.normal_()
        for op in flow(settled, source, state, Context(0, world, number, arena=arena), target):
            if (recv := getattr(op, "recv", None)) is not None:
                recv.copy_(op.send.view(-1)[: recv.numel()].view_as(recv))  # pyright: ignore[reportAttributeAccessIssue]

    for number in range(4):
        step(number)
    return step


def calls(step: Callable[[int], None]) -> tuple[int, int]:
    """Functions of the package that two steps call, and what is not Python (torch, kernels) that these call."""
    found = Counter[str]()

    def count(frame: FrameType, event: str, _: object) -> None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            found[event] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        step(4)
        step(5)
    finally:
        sys.setprofile(before)
    return found["call"], found["c_call"]


@pytest.mark.parametrize("text", REDUCERS)
def test_calls_do_not_grow_with_the_parameters(text: str) -> None:
    few, many = (calls(stepper(cc.parse(text), pairs)) for pairs in (2, 6))
    assert few == many and few[0] < 400


def test_a_row_of_a_sharded_buffer_is_no_loop_either() -> None:
    few, many = (calls(stepper(cc.Exact(), pairs, row=True)) for pairs in (2, 6))
    assert few == many and few[0] < 100


@pytest.mark.parametrize(
    "text",
    [
        "AllReduce(Sketch(ratio=0.1))",
        "PowerSGD(rank=2, alternate=True)",
        "SharedScale(QSGD(bits=4))",
        "ErrorFeedback(TopK(ratio=0.1), dtype=int8)",
        "AllGather(QSGD(bits=4, coding='elias'))",
        "EF21(TopK(ratio=0.1))",
    ],
)
def test_memory_is_kept_from_step_to_step(text: str) -> None:
    """What is still made in two steps: a scalar of torch's own here and there, and where Elias' bodies begin."""
    step = stepper(cc.parse(text), 2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        step(4)
        step(5)
    assert sum(e.count for e in seen.key_averages() if e.key in ("aten::empty", "aten::empty_strided")) <= 4
