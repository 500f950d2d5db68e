"""Backward passes that the script throws away, ignores, or adds up: memory is as if they had not been, or as if they
had been one."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compcomm as cc
from tests import schemes
from tests.optim.saved import same

from . import models
from .given import SHAPES, Given, gradients
from .harness import Workers

pytestmark = pytest.mark.multi

EF = schemes.SCHEMES["EF"]
MORE = (
    "Exact()",
    "QSGD(bits=4, coding='elias')",
    "AllGather(Threshold(ratio=0.05))",
    "ErrorFeedback(TopK(ratio=0.05), dtype=bfloat16)",
    "ErrorFeedback(QSGD(bits=4, rounding='nearest'), dtype=int8, average=0.3, reset=2)",
    "Warmup(2, EF21(TopK(ratio=0.05)))",
    "ErrorFeedback(LGreCo(TopK(ratio=0.05), every=4, window=2))",
    "Accordion(ErrorFeedback(TopK(ratio=0.1)), high=0.01, every=2)",
    "GlobalTopK(ErrorFeedback(TopK(ratio=0.05)), every=2)",
    "Partition({'a': PowerSGD(rank=2), 'b': EF21(TopK(ratio=0.1)), '*': Exact()})",
)
THROWN: dict[int, tuple[str, ...]] = {0: ("discard", "discard", "exact"), 1: ("local", "discard"), 4: ("discard",)}
"""Before which steps passes are thrown away, and how."""


def one(model: Any, given: dict[str, Tensor]) -> list[Tensor]:
    """A pass; what it delivers."""
    model.zero_grad()
    model(given).backward()
    return [p.grad.clone() for p in model.parameters()]


def thrown_away(rank: int, world: int, reducers: list[str]) -> Any:
    """What is wrong with a run that throws passes away, beside one that does not. They have no names at first."""
    told: dict[str, list[str]] = {}
    for text in reducers:
        stateful, faults, runs = cc.settle(cc.parse(text), world).traits.stateful, told.setdefault(text, []), []
        for discardable in (False, stateful):
            module = Given()
            sgd = torch.optim.SGD(module.parameters(), lr=0.1)
            model, hook = models.unbound(
                module, cc.parse(text), optimizer=sgd, discardable=discardable, megabytes=0.004
            )
            if cc.settle(cc.parse(text), world).traits.named:
                hook.bind(model)
            runs.append((model, hook))
        (plain, first), (model, hook) = runs
        for step in range(6):
            for way in THROWN.get(step, ()):
                each = [gradients(r, 100 + step) for r in range(world)]
                before = 0 if hook.attachment is None else hook.attachment.counters().bytes_sent
                with nullcontext() if way == "discard" else hook.ignoring(average=way == "exact"):
                    found = one(model, each[rank])
                if way == "discard":
                    hook.discard()
                else:
                    due = [each[rank][n] if way == "local" else sum(g[n] for g in each) / world for n in SHAPES]
                    if not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, due, strict=True)):
                        faults.append(f"{way} before step {step}: not that mean")
                if (hook.attachment.counters().bytes_sent == before) is not (way == "local"):
                    faults.append(f"{way} before step {step}: bytes")
            g = gradients(rank, step)
            if not all(torch.equal(a, b) for a, b in zip(one(plain, g), one(model, g), strict=True)):
                faults.append(f"step {step}: another mean")
        twice = hook.report().state_bytes, first.report().state_bytes
        if stateful and twice[0] != 2 * twice[1]:
            faults.append(f"bytes of state: {twice}")
        first.bind(plain)
        hook.bind(model)
        a, b = (models.own(h.state_dict()) for h in (first, hook))
        if a["step"] != b["step"] or hook.report().steps != 6 or not same(a["slots"], b["slots"]):
            faults.append("another state")
        first.attachment.detach()
        hook.attachment.detach()
    return told


@pytest.mark.parametrize("first", [0, pytest.param(1, marks=pytest.mark.full)])
def test_memory_is_as_if_the_pass_had_not_been(two: Workers, first: int) -> None:
    """What is taken back is a slot's memory, whoever it is: every second scheme stands for them in the default size."""
    reducers = [*schemes.SCHEMES.values(), *MORE][first::2]
    for told in two.run(thrown_away, timeout=200, reducers=reducers):
        assert told == {text: [] for text in reducers}


def says_no(rank: int, world: int) -> Any:
    told: dict[str, Any] = {}
    model, hook = models.wrap(models.mlp(), cc.parse(EF), discardable=True)
    other, bare = models.wrap(models.mlp(), cc.parse(EF))
    state = cc.DDPState(cc.parse(EF), timeout=20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = models.batches(rank, 1)[0]
    told["nothing"], told["unopened"] = models.caught(hook.discard), models.caught(state.discard)
    between = {
        "twice": hook.discard,
        "rescaled": lambda: hook.rescale_error(1.0, 2.0),
        "loaded": lambda: hook.load_state_dict(hook.state_dict()),
        "applied": optimizer.step,
    }
    for name, call in between.items():
        model(x).sum().backward()
        call()
        told[name] = models.caught(hook.discard)
    (torch.tensor(float("nan")) * model(x).sum()).backward()
    hook.discard()
    for enabled in (True, True, False):
        hook.enabled = enabled
        model(x).sum().backward()
        if enabled:
            optimizer.step()
    hook.discard()
    hook.enabled = True
    told["bad"] = hook.step, bool(all(t.isfinite().all() for t in models.slots(hook)["residual"].values()))
    other(x).sum().backward()
    told["kept"] = models.caught(bare.discard)
    for value in (0, True, 1.5):
        told[f"passes={value}"] = models.caught(lambda v=value: setattr(hook, "passes", v))
    told["average"] = models.caught(lambda: hook.ignoring(average=1).__enter__())
    told["discardable"] = models.caught(lambda: cc.DDPState(cc.parse(EF), discardable=1))
    return told


def test_what_cannot_be_taken_back_is_an_error(two: Workers) -> None:
    for told in two.run(says_no):
        for name in ("nothing", "twice", "rescaled", "loaded", "unopened"):
            assert told[name][0] == "StateError", name
            assert "there is no backward pass to take back" in told[name][1], name
        assert told["applied"][0] == told["kept"][0] == "StateError"
        assert "an optimizer has stepped since" in told["applied"][1] and "discardable=True" in told["kept"][1]
        assert told["bad"] == (5, True)
        assert all("an integer, 1 or more" in told[f"passes={v}"][1] for v in (0, True, 1.5))
        assert told["average"][0] == told["discardable"][0] == "TypeError"


class Branches(nn.Module):
    """One of two branches, as it is asked for; a weight of the second lies in memory by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.left, self.right = models.mlp(2), models.mlp(1, seed=1), models.mlp(1, seed=2)
        self.right[0].weight = nn.Parameter(self.right[0].weight.detach().t().contiguous().t())

    def forward(self, x: Tensor, right: bool) -> Tensor:
        x = self.body(x)
        return self.right(x).sum() if right else self.left(x).sum()


def several(rank: int, world: int) -> Any:
    """Three passes a step by ``passes`` and by ``no_sync``; among the first alone, one rank takes the other branch."""
    faults: list[str] = []

    def grads(text: str, passes: bool, unused: bool, **form: Any) -> list[Tensor]:
        model, hook = models.wrap(
            Branches(),
            cc.Auto() if text == "Auto" else cc.parse(text),
            megabytes=0.02,
            find_unused_parameters=unused,
            **form,
        )
        if text == "Auto":
            hook.observers[0].decide(None)  # DDP's own sum
        hook.passes = 3 if passes else 1
        found: list[Tensor] = []
        for step in range(3):
            model.zero_grad(set_to_none=step != 2)
            for part, x in enumerate(models.batches(rank, 3, start=3 * step)):
                sent = hook.counters().bytes_sent
                with nullcontext() if passes or part == 2 else model.no_sync():
                    right = part == 0 and (rank == 0 or not unused)
                    (model(x, right) + (0.0 if unused else model.module(x, not right))).backward()
                if passes and (hook.counters().bytes_sent > sent) is not (part == 2):
                    faults.append(f"{text}, part {part}: sent {hook.counters().bytes_sent - sent}")
            found += [torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]
        if hook.step != 3:
            faults.append(f"{text}: {hook.step} steps")
        hook.detach()
        return found

    for text, view, unused in product(("EF21(TopK(ratio=0.05))", "Exact()", "Auto"), (False, True), (False, True)):
        one, other = (grads(text, passes, unused, gradient_as_bucket_view=view) for passes in (True, False))
        if not all(torch.equal(a, b) for a, b in zip(one, other, strict=True)):
            faults.append(f"{text}, view={view}, unused={unused}: not what no_sync() gives")
    return faults


def test_several_passes_are_one_step(two: Workers) -> None:
    assert two.run(several, timeout=100) == [[], []]


def incomplete(rank: int, world: int) -> Any:
    model, state = models.unbound(models.mlp(), cc.parse(EF))
    optimizer, other = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(models.mlp().parameters(), lr=0.1)
    state.passes = 3
    xs = models.batches(rank, 4)
    for x in xs[:2]:
        model(x).sum().backward()
    other.step()
    early = models.caught(optimizer.step)
    state.discard()
    optimizer.zero_grad()
    for x in xs[:2]:
        with state.ignoring(average=False):
            model(xs[3]).sum().backward()
            optimizer.zero_grad()
        model(x).sum().backward()
    state.passes = 1
    optimizer.zero_grad()
    model(xs[2]).sum().backward()
    optimizer.step()
    return early, state.attachment.step, models.flat(model)


def test_a_step_that_is_not_complete_goes_to_no_optimizer(two: Workers) -> None:
    results = two.run(incomplete)
    for early, step, found in results:
        assert early[0] == "RuntimeError"
        assert "SGD.step() after 2 of hook.passes = 3 backward passes" in early[1]
        assert step == 1
        assert torch.equal(found, results[0][2])


def without_compression(rank: int, world: int) -> Any:
    """``Auto`` has handed the buckets back to DDP's own sum, then picks a method, then goes back."""
    model, hook = models.wrap(models.mlp(), cc.Auto())
    xs = models.batches(rank, 3)
    hook.observers[0].decide(None)
    steps, found = [hook.observers[0].bypass is not None], []

    def back(*inputs: Tensor) -> Tensor:
        model.zero_grad()
        for x in inputs:
            model(x).sum().backward()
        return models.grads(model)

    found.append(back(xs[0]))
    steps.append(hook.step)
    hook.discard()
    with hook.ignoring():
        found.append(back(xs[0]))
    steps.append(hook.step)
    hook.passes = 2
    found.append(back(xs[0], xs[1]))
    hook.passes = 1
    steps.append(hook.step)
    found.append(back(xs[0]) + back(xs[1]))
    hook.observers[0].decide(cc.parse(EF))
    back(xs[2])
    kept = models.caught(hook.discard)[0]
    hook.observers[0].decide(None)
    hook.discard()
    steps.append(hook.step)
    return steps, kept, [torch.allclose(a, b, 1e-5, 1e-5) for a, b in zip(found[::2], found[1::2], strict=True)]


def test_where_nothing_is_compressed(two: Workers) -> None:
    for steps, kept, close in two.run(without_compression):
        assert steps == [True, 1, 0, 1, 3]
        assert kept == "StateError"
        assert close == [True, True]
