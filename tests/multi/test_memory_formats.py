"""A parameter that is stored transposed or channels_last gets the same means, and keeps the same state, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.core.strides import storage_order

from ..contract.cases import REDUCERS
from . import models
from .given import Given, gradients
from .harness import Workers

pytestmark = [pytest.mark.multi, pytest.mark.timeout(180)]

SHAPES: dict[str, tuple[int, ...]] = {
    "a": (48, 40), "b": (24, 16, 3, 3), "c": (64,), "d": (3, 20, 24), "e": (8, 4, 3, 5, 5)
}  # fmt: skip
CHOSEN = [repr(cases[0]) for cases in REDUCERS.values() if not isinstance(cases[0], cc.Partition)] + [
    "ErrorFeedback(QSGD(bits=4, rounding='nearest'), dtype=torch.int8, average=0.3)",
    "ErrorFeedback(TwoPhase(SignScale(block=64)))",
    "ErrorFeedback(Rotated(LloydMax(2)))",
    "LGreCo(PowerSGD(rank=2), every=2)",
    "PowerSGD(rank=2, alternate=True)",
]


def unusual(t: Tensor) -> Tensor:
    """The same values, stored otherwise."""
    if t.dim() == 4:
        return t.to(memory_format=torch.channels_last)
    if t.dim() == 5:
        return t.to(memory_format=torch.channels_last_3d)
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


def model(odd: bool) -> Given:
    return Given(shapes=SHAPES, stored=unusual if odd else torch.Tensor.contiguous)


class Run:
    """A model of that reducer, and the means of its steps, row-major."""

    def __init__(self, rank: int, reducer: str, odd: bool, state: Any = None) -> None:
        self.rank, module = rank, model(odd)
        plain = torch.optim.SGD(module.parameters(), lr=0.1)
        self.model, self.hook = models.wrap(module, cc.parse(reducer), megabytes=0.004, optimizer=plain)
        if state is not None:
            (self.hook.load_portable_state_dict if "slots" in state else self.hook.load_state_dict)(state)

    def means(self, steps: range) -> list[Tensor]:
        found: list[Tensor] = []
        for step in steps:
            self.model.zero_grad()
            self.model(gradients(self.rank, step, SHAPES)).backward()
            found += [p.grad.contiguous().clone() for p in self.model.parameters()]
        return found


def slots(state: Any) -> list[Tensor]:
    content = state if "slots" in state else next(iter(state.values()))
    return [t.reshape(-1) for _, entries in sorted(content["slots"].items()) for _, t in sorted(entries.items())]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def formats(rank: int, world: int, first: int) -> list[str]:
    """What is wrong."""
    wrong: list[str] = []
    for reducer in CHOSEN[first::2]:
        usual, odd = Run(rank, reducer, False), Run(rank, reducer, True)
        if not same(usual.means(range(3)), odd.means(range(3))):
            wrong.append(f"{reducer}: means differ")
        kept, merged = usual.hook.state_dict(), usual.hook.portable_state_dict()
        if not same(slots(kept), slots(odd.hook.state_dict())):
            wrong.append(f"{reducer}: state differs")
        if not same(slots(merged), slots(odd.hook.portable_state_dict())):
            wrong.append(f"{reducer}: merged state differs")
        resumed = Run(rank, reducer, True, kept)
        if not same(usual.means(range(3, 5)), resumed.means(range(3, 5))):
            wrong.append(f"{reducer}: resumed in another format, means differ")
        for run in (usual, odd, resumed):
            run.hook.detach()
    return wrong


@pytest.mark.parametrize("first", [0, pytest.param(1, marks=pytest.mark.full)])
def test_means_and_state_do_not_depend_on_the_memory_format(two: Workers, first: int) -> None:
    """Buckets are small, so that they hold several parameters each, and are cut anew after the first step."""
    assert [w for found in two.run(formats, timeout=170, first=first) for w in found] == []


@pytest.mark.parametrize("odd", [False, True])
def test_the_scenario_has_parameters_of_every_kind(odd: bool) -> None:
    orders = [storage_order(p) for p in model(odd).parameters()]
    assert orders == ([(1, 0), (0, 2, 3, 1), (), (1, 2, 0), (0, 2, 3, 4, 1)] if odd else [()] * 5)


def powers(rank: int, world: int) -> float:
    """The error of a mean of rank one that PowerSGD(1) should send whole."""
    run, given = Run(rank, "PowerSGD(rank=1)", True), gradients(0, 0, SHAPES)
    row = torch.randn(1, 144, generator=torch.Generator().manual_seed(1))
    given["a"] = torch.arange(48.0).view(-1, 1) * torch.linspace(1, 2, 40)
    given["b"] = (torch.arange(24.0).view(-1, 1) @ row).view(24, 16, 3, 3)
    for _ in range(2):
        run.model.zero_grad()
        run.model(given).backward()
    run.hook.detach()
    named = dict(run.model.module.named_parameters())
    return max(float((named[n].grad - given[n]).norm() / given[n].norm()) for n in "ab")


def test_matrices_are_what_the_shape_says(two: Workers) -> None:
    assert max(two.run(powers)) < 1e-6


def test_a_piece_cannot_be_turned() -> None:
    whole = cc.Layout.of([("w", unusual(torch.zeros(4, 6)))])
    assert whole.row_major.segments == cc.Layout.of([("w", (4, 6))]).segments
    piece = cc.Layout([whole.segments[0].piece(0, 5)])
    with pytest.raises(ValueError, match="row-major, or hold it whole"):
        _ = piece.row_major


def unlike(rank: int, world: int) -> Any:
    ddp, _ = models.wrap(model(False))
    if rank == 1:
        ddp.module.b.data = unusual(ddp.module.b.data)
    return models.caught(lambda: cc.attach(ddp, cc.Exact(), timeout=20))


def test_ranks_of_unlike_memory_formats(two: Workers) -> None:
    for kind, message, _ in two.run(unlike):
        assert kind == "AgreementError"
        assert "b [24, 16, 3, 3] float32 in memory format channels_last on rank 1." in message
        assert "Convert the model alike on every rank" in message
