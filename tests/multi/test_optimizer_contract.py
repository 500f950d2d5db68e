"""What every optimizer of ours keeps to, between two processes under DDP."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from tests.optim.saved import same
from tests.patience import patience

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi

KINDS = cc.optim.__all__
OPTIONS: dict[str, Any] = {"ZeroOneAdam": {"var_update_scaler": 2, "local_step_scaler": 1, "local_step_clipper": 4}}
SHAPES = {"conv": (32, 16, 3, 3), "matrix": (40, 30), "bias": (40,), "still": (8, 8)}
FREEZE, STEPS, LR, DECAY = 3, 9, 0.01, 0.1


class Net(nn.Module):
    """Parameters whose gradients are given. ``turned``: they lie in memory in other orders, one of them with gaps."""

    def __init__(self, part: int, turned: bool = False) -> None:
        super().__init__()
        self.side = nn.ParameterDict(  # first here, and last in a backward pass
            {"part": nn.Parameter(torch.linspace(-1, 1, 5 * part, dtype=torch.float32).view(part, 5))}
        )
        for name, shape in SHAPES.items():
            made = torch.linspace(-0.5, 0.5, torch.Size(shape).numel(), dtype=torch.float32).view(shape)
            if turned and name == "bias":
                made = torch.stack((made, made), 1)[:, 0]
            elif turned:
                made = made.movedim(1, -1).contiguous().movedim(-1, 1)
            self.register_parameter(name, nn.Parameter(made))
        DDP._set_params_and_buffers_to_ignore_for_model(self, ["side.part"])

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        used = [(n, p) for n, p in self.named_parameters() if p.requires_grad and n in given]
        return torch.stack([(p * given[n]).sum() for n, p in sorted(used, key=lambda u: "." not in u[0])]).sum()


def gradients(rank: int, step: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(100 * step + rank)
    shapes = {**SHAPES, "side.part": (3 + rank, 5)}
    return {n: torch.randn(shape, generator=draw, dtype=torch.float32) for n, shape in shapes.items()}


def make(kind: str, rank: int, turned: bool = False, **options: Any) -> tuple[DDP, Any]:
    """A DDP model with a parameter that is frozen afterwards and one that is each rank's own, and its optimizer."""
    module = Net(3 + rank, turned)
    model = DDP(module, find_unused_parameters=True)
    module.still.requires_grad_(False)
    told = {"lr": LR, "freeze": FREEZE, "weight_decay": DECAY, "timeout": 20, **OPTIONS.get(kind, {}), **options}
    return model, getattr(cc.optim, kind)(model, **told)


def advance(model: DDP, own: Any, rank: int, steps: range) -> None:
    for step in steps:
        own.zero_grad()
        model(gradients(rank, step)).backward()
        own.step()


def values(model: DDP) -> dict[str, Tensor]:
    return {n: p.detach().clone(memory_format=torch.contiguous_format) for n, p in model.module.named_parameters()}


def adam(x: Tensor, grads: list[Tensor]) -> Tensor:
    """AdamW without bias correction, in double precision."""
    x, m, v = x.double(), torch.zeros_like(x).double(), torch.zeros_like(x).double()
    for g in grads:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g.double() ** 2
        x = x - LR * (m / (v.sqrt() + 1e-8) + DECAY * x)
    return x


def trains(rank: int, world: int, kind: str) -> Any:
    """What comes out of a run, and what its rank's own parameter should have come to."""
    model, own = make(kind, rank)
    before = values(model)
    advance(model, own, rank, range(STEPS))
    if kind == "ZeroOneAdam":
        own.synchronise()
    own.detach()
    due = adam(before["side.part"], [gradients(rank, t)["side.part"] for t in range(STEPS)])
    return values(model), before["still"], due


@pytest.mark.parametrize("kind", KINDS)
def test_what_ddp_ignores_and_what_was_frozen_since(two: Workers, kind: str) -> None:
    """A rank's own parameter, of a shape of its own, is under Adam there; a frozen one stays; all else is in common."""
    results = two.run(trains, kind=kind)
    for found, still, due in results:
        torch.testing.assert_close(found["side.part"].double(), due, rtol=1e-5, atol=1e-6)
        assert torch.equal(found["still"], still)
        assert all(torch.equal(found[n], results[0][0][n]) for n in SHAPES)


def overflows(rank: int, world: int, kind: str, at: int, late: bool) -> Any:
    """Under a scaler; in step ``at`` rank 0's own gradient is infinite, and rank 1 has none of its own. ``late``: it
    becomes so after the backward pass."""
    model, own = make(kind, rank)
    scaler, stayed = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=4), False
    for step in range(STEPS):
        given, before = gradients(rank, step), values(model)
        if step == at and rank:
            del given["side.part"]
        elif step == at and not late:
            given["side.part"][1, 2] = float("inf")
        own.zero_grad()
        scaler.scale(model(given)).backward()
        if step == at and late and not rank:
            model.module.side.part.grad[1, 2] = float("inf")
        told = models.caught(lambda: scaler.step(own))
        if told[0] != "nothing":
            own.detach()
            return told
        scaler.update()
        if step == at:
            stayed = same(before, values(model))
    if kind == "ZeroOneAdam":
        own.synchronise()
    own.detach()
    return values(model), own.steps, scaler.get_scale(), stayed


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_an_infinity_of_what_ddp_ignores(two: Workers, kind: str, at: int) -> None:
    """Every scaler hears of it, in the warm-up and after it: all skip the step and keep one scale."""
    results = two.run(overflows, kind=kind, at=at, late=False)
    for found, steps, scale, stayed in results:
        assert stayed and steps == STEPS - (at < FREEZE or kind != "ZeroOneAdam")
        assert scale == 64.0  # halved once and doubled once
        assert all(torch.equal(found[n], results[0][0][n]) for n in SHAPES)


@pytest.mark.parametrize("at", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_an_infinity_that_comes_after_the_backward_pass(two: Workers, kind: str, at: int) -> None:
    """One scaler alone knows. While DDP averages scaled gradients that is an error; else replicas stay alike."""
    results = two.run(overflows, kind=kind, at=at, late=True)
    if at < FREEZE and kind != "ZeroOneAdam":
        assert all(name == "RuntimeError" and "ShardedGradScaler" in message for name, message, _ in results)
        return
    assert len({steps for _, steps, *_ in results}) == 1
    assert all(torch.equal(found[n], results[0][0][n]) for found, *_ in results for n in SHAPES)


def defaults(rank: int, world: int, kind: str) -> Any:
    ends: list[Any] = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            model, own = make(kind, rank)
            advance(model, own, rank, range(STEPS))
            ends.append((values(model), own.state_dict()))
            own.load_state_dict(ends[-1][1])
            advance(model, own, rank, range(STEPS, STEPS + 2))
            ends[-1] = (values(model), *ends[-1])
            own.detach()
        finally:
            torch.set_default_dtype(torch.float32)
    return [same(ends[0], end) for end in ends]


@pytest.mark.parametrize("kind", KINDS)
def test_no_dtype_is_the_default_one(two: Workers, kind: str) -> None:
    assert two.run(defaults, kind=kind) == [[True] * 3] * 2


def turns(rank: int, world: int, kind: str) -> Any:
    """Saved in one order of memory and loaded in another: what is saved again, and where more steps lead."""
    found: list[Any] = []
    model, own = make(kind, rank)
    for at in (2, 7):
        advance(model, own, rank, range(own.steps, at))
        forms = [(own.state_dict(), values(model))] if at > FREEZE else []
        forms.append((own.portable_state_dict(), values(model)))  # which synchronises first
        for saved, x in forms:
            ends: list[Any] = []
            for turned in (False, True):
                other, fresh = make(kind, rank, turned)
                fresh.load_state_dict(saved)
                again = fresh.portable_state_dict() if saved is forms[-1][0] else fresh.state_dict()
                with torch.no_grad():
                    for n, p in other.module.named_parameters():
                        p.copy_(x[n])
                advance(other, fresh, rank, range(at, at + 4))
                if kind == "ZeroOneAdam":
                    fresh.synchronise()
                fresh.detach()
                ends.append((same(saved, again), values(other)))
            found.append(ends)
    own.detach()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_another_order_of_memory(two: Workers, kind: str) -> None:
    for found in two.run(turns, kind=kind):
        for (kept, plain), (again, turned) in found:
            assert kept and again
            for n, x in plain.items():
                torch.testing.assert_close(turned[n], x, rtol=1e-5, atol=1e-6)


def rests(rank: int, world: int, kind: str) -> Any:
    """Rows of a matrix and of a convolution before and after steps in which their gradient was zero, and another's."""
    model, own = make(kind, rank, weight_decay=0.0)
    before = values(model)
    for step in range(STEPS):
        given = gradients(rank, step)
        for name in ("conv", "matrix"):
            given[name][5:9] = 0.0
            given[name][11 + rank] = 0.0
        own.zero_grad()
        model(given).backward()
        own.step()
    if kind == "ZeroOneAdam":
        own.synchronise()
    own.detach()
    after = values(model)
    return [(before[n][5:9], after[n][5:9], before[n][11], after[n][11]) for n in ("conv", "matrix")]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_gradient_stay(two: Workers, kind: str) -> None:
    """Bit for bit, on every rank, through the warm-up and after it; a row that one rank alone has none of moves."""
    for found in two.run(rests, kind=kind):
        for before, after, row, moved in found:
            assert torch.equal(before, after)
            assert not torch.equal(row, moved)


def throws_away(rank: int, world: int, kind: str) -> Any:
    """A backward pass whose gradients no step takes: before the freeze and after it."""
    ends: list[Any] = []
    for wasteful in (False, True):
        model, own = make(kind, rank)
        for step in range(STEPS):
            if wasteful and step in (1, 5):
                before = own.state_dict()
                model(gradients(rank, 50 + step)).backward()
                assert same({**before, "averaged": 0}, {**own.state_dict(), "averaged": 0}, "averaged")
            advance(model, own, rank, range(step, step + 1))
        ends.append((values(model), own.state_dict()["state"]))
        own.detach()
    return same(ends[0], ends[1])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_that_are_thrown_away_leave_no_trace(two: Workers, kind: str) -> None:
    assert two.run(throws_away, kind=kind) == [True, True]


def stores(rank: int, world: int, kind: str) -> Any:
    """Through torch's own functions, as they are and flattened, into a new optimizer; and what one rank alone has."""
    model, own = make(kind, rank)
    advance(model, own, rank, range(7))
    saved, x = own.state_dict(), values(model)
    kept: list[bool] = []
    for flatten in (False, True):
        asked = StateDictOptions(flatten_optimizer_state_dict=flatten)
        document = get_optimizer_state_dict(model, own, options=asked)
        other, fresh = make(kind, rank, lr=0.5)
        set_optimizer_state_dict(other, fresh, document, options=asked)
        kept.append(same(saved, fresh.state_dict()))
        with torch.no_grad():
            for n, p in other.module.named_parameters():
                p.copy_(x[n])
        advance(other, fresh, rank, range(7, 9))
        kept.append(fresh.param_groups[0]["lr"] == LR)
        ends = values(other)
        fresh.detach()
    advance(model, own, rank, range(7, 9))
    kept.append(same(ends, values(model)))
    before, began = own.state_dict(), time.monotonic()
    told = [
        models.caught(lambda s=s: own.load_state_dict(s)) for s in ((saved if rank == 0 else {}), _older(saved, rank))
    ]
    kept += [same(before, own.state_dict()), time.monotonic() - began < patience(5)]
    own.detach()
    return kept, told


def _older(saved: Any, rank: int) -> Any:
    """On rank 1 what was saved in another step."""
    (group,) = saved["param_groups"]
    ((where, content),) = group["compcomm"].items()
    state = {i: {**e, "step": e["step"] - 1} for i, e in saved["state"].items()} if rank else saved["state"]
    group = {**group, "compcomm": {where: {**content, "steps": content["steps"] - rank}}}
    return {**saved, "state": state, "param_groups": [group]}


@pytest.mark.parametrize("kind", KINDS)
def test_what_torch_saves_and_what_one_rank_lacks(two: Workers, kind: str) -> None:
    for rank, (kept, (lacking, older)) in enumerate(two.run(stores, kind=kind)):
        assert all(kept), kept
        assert lacking[0] == older[0] == "StateError"
        assert rank or "rank 1 could not do it: StateError: load_state_dict: dict is no optimizer's state" in lacking[1]
        assert not rank or "dict is no optimizer's state" in lacking[1]
        assert "steps: 7 on rank 0, 6 on rank 1" in older[1] and "No rank has taken anything" in older[1]


def hook(rank: int, world: int) -> Any:
    """The hook's states, of which rank 1 has none."""
    model, attachment = models.wrap(models.mlp(), cc.ErrorFeedback(cc.TopK(0.1)))
    models.train(model, models.batches(rank, 2))
    exact, merged, began = attachment.state_dict(), attachment.portable_state_dict(), time.monotonic()
    loads: list[tuple[Callable[[Any], None], Any]] = [
        (attachment.load_state_dict, exact), (attachment.load_portable_state_dict, merged)
    ]  # fmt: skip
    told = [models.caught(lambda f=f, s=s: f(s if rank == 0 else {})) for f, s in loads]
    return told, same(exact, attachment.state_dict()), time.monotonic() - began < patience(5)


def test_a_hooks_state_that_one_rank_lacks(two: Workers) -> None:
    for rank, (told, unchanged, soon) in enumerate(two.run(hook)):
        assert unchanged and soon
        for kind, message, _ in told:
            assert kind == "StateError" and (rank or "rank 1 could not do it" in message), message
