"""The path of GPUs without one: kernels interpreted, what messages say left to kernels, collectives through mirrors.

Real Gloo processes; all of it equals the path of CPUs to the bit.
"""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.engine.options import Options
from compcomm.hosts.joining import connect
from compcomm.ops import backend
from compcomm.transports.process_group import ProcessGroup
from tests.interpreter import hasten

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi

# Coded however small: two blocks, of which each rank owns one, and single ones. Every block is interpreted.
SHAPES = [("a.weight", (16, 33)), ("a.bias", (40,)), ("b.weight", (8, 60)), ("idle.weight", (12, 40))]
CUTS = [[0, 1], [2, 3]]
STEPS = 3
SIGNS = "SignScale(dense_below=1)"
REDUCERS = [
    "Exact()",
    f"ErrorFeedback({SIGNS})",
    f"ErrorFeedback(TwoPhase({SIGNS}))",
    "AllReduce(Cast(bfloat16, dense_below=1))",
]


def layouts() -> list[cc.Layout]:
    return [cc.Layout.of(SHAPES[i] for i in cut) for cut in CUTS]


def gradients(rank: int, step: int, dtype: torch.dtype, bad: bool) -> list[torch.Tensor]:
    """One flat vector per bucket; in step 1 rank 1 meets an infinity, and "idle" has no gradient but in the last."""
    draw = torch.Generator().manual_seed(100 * step + rank)
    found = [torch.randn(layout.numel, generator=draw).to(dtype) for layout in layouts()]
    if step != STEPS - 1:
        found[1][-480:] = 0
    if bad and (step, rank) == (1, 1):
        found[0][5] = float("inf")
    return found


def flattened(slots: Any) -> dict[Any, torch.Tensor]:
    return {(slot, name): tensor for slot, held in slots.items() for name, tensor in held.items()}


def exchange(rank: int, world: int, reducer: str, path: str, dtype: torch.dtype = torch.float32) -> Any:
    """The means of all steps, the state after them, and how many steps were counted."""
    if path == "triton":
        hasten()
    with backend("triton") if path == "triton" else nullcontext():
        parameters: Any = [(n, torch.nn.Parameter(torch.empty(s))) for n, s in SHAPES]
        transport = ProcessGroup.over(None, "cpu", timedelta(seconds=60), staged=path != "native")
        made = cc.Attachment(transport, Options(cc.parse(reducer), seed=7), parameters)
        means: list[torch.Tensor] = []
        for step in range(STEPS):
            flats = gradients(rank, step, dtype, bad=True)
            made.begin_step()
            for b, (flat, layout) in enumerate(zip(flats, layouts(), strict=True)):
                made.submit(cc.Bucket(flat, layout), last=b == len(flats) - 1)
            made.end_step()
            means += [flat.clone() for flat in flats]
        found = means, flattened(models.slots(made)), made.step
        made.detach()
        return found


def failing(rank: int, world: int, path: str) -> Any:
    """Rank 1's kernel refuses its gradient in step 1: what each rank's host is told, and in which step."""

    class Fails(cc.SignScale):
        def encode_rows(self, i: Any, gain: Any, rng: Any, hints: Any, find: Any) -> None:
            if rank == 1 and rng.step == 1:
                raise ArithmeticError("made to fail")
            super().encode_rows(i, gain, rng, hints, find)

    with backend("triton") if path == "triton" else nullcontext():
        parameters: Any = [(n, torch.nn.Parameter(torch.empty(s))) for n, s in SHAPES]
        reducer = cc.ErrorFeedback(Fails(dense_below=1))
        made = cc.Attachment(connect(None, torch.device("cpu"), 60), Options(reducer), parameters)
        step = 0
        try:
            for step in range(STEPS):
                flats = gradients(rank, step, torch.float32, bad=False)
                made.begin_step()
                for b, (flat, layout) in enumerate(zip(flats, layouts(), strict=True)):
                    made.submit(cc.Bucket(flat, layout), last=b == len(flats) - 1)
                made.end_step()
        except Exception as error:
            return step, type(error).__name__, str(error), bool(flats[0].isnan().all())
        finally:
            made.detach()
        return step, "nothing", "", False


@pytest.mark.parametrize("reducer", REDUCERS)
def test_equals_the_path_of_cpus(two: Workers, reducer: str) -> None:
    expected = two.run(exchange, reducer=reducer, path="native")
    for rank, found in enumerate(two.run(exchange, reducer=reducer, path="triton")):
        means, state, step = expected[rank]
        assert step == found[2] == STEPS
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(means, found[0], strict=True))
        assert not means[2].isfinite().all() and means[0].isfinite().all(), "the bad step, and no other"
        assert state.keys() == found[1].keys()
        assert all(torch.equal(state[k], found[1][k]) for k in state), reducer


def test_through_mirrors_alone(two: Workers) -> None:
    reducer = "ErrorFeedback(TwoPhase(QSGD(bits=4, rounding='nearest', dense_below=1)))"
    expected, found = (
        two.run(exchange, reducer=reducer, path="native"),
        two.run(exchange, reducer=reducer, path="staged"),
    )
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a[0], b[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.full)])
def test_half_precision_buckets_need_no_copy(two: Workers, dtype: torch.dtype) -> None:
    """Kernels read and write two bytes as they are, and give what the fp32 copy gave."""
    expected = two.run(exchange, reducer=REDUCERS[1], path="native", dtype=dtype)
    found = two.run(exchange, reducer=REDUCERS[1], path="triton", dtype=dtype)
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(x, y) or x.isnan().all() for x, y in zip(a[0], b[0], strict=True))
        assert all(torch.equal(a[1][k], b[1][k]) for k in a[1])


def test_a_peer_that_failed_is_named_a_step_later(two: Workers) -> None:
    here, there = two.run(failing, path="native")
    assert (here[0], here[1]) == (1, "PeerError") and there[:3] == (1, "ArithmeticError", "made to fail")
    here, there = two.run(failing, path="triton")
    assert there[:3] == (1, "ArithmeticError", "made to fail")
    assert here[0] == 2 and "rank 1 failed in step 1" in here[2], here
