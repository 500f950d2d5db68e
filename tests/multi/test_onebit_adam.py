"""1-bit Adam between real processes: the page's numbers, one model on all ranks, memory, bad steps, and what a training
script does to an optimizer."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from compcomm.optim import OneBitAdam, flat
from tests.optim.saved import ours, same, tensors
from tests.reference import onebit_adam as page

from . import models
from .given import SHAPES, Given, Named, gradients
from .harness import Workers

pytestmark = pytest.mark.multi

FREEZE, STEPS, LR = 4, 12, 0.01
NUMEL = sum(int(np.prod(s)) for s in SHAPES.values())
COMPRESSORS = {
    "sign": "SignScale()",
    "published": "SignScale(scale='l2')",
    "4 bits": "QSGD(bits=4, rounding='nearest')",
    "top-k": "TopK(ratio=0.1)",
    "two-phase top-k": "TwoPhase(TopK(ratio=0.1))",
}


def make(module: nn.Module, ddp: bool = True, **options: Any) -> tuple[nn.Module, OneBitAdam]:
    """A model and its optimizer; ``compressor`` and ``warmup`` as text."""
    told = {k: cc.parse(v) if isinstance(v, str) and k != "freeze" else v for k, v in options.items()}
    names = ("find_unused_parameters", "gradient_as_bucket_view")
    wrapping = {n: told.pop(n) for n in names if n in told}
    model = DDP(module, bucket_cap_mb=0.004, **wrapping) if ddp else module
    return model, OneBitAdam(model, **{"lr": LR, "freeze": FREEZE, "timeout": 20, **told})


def advance(model: nn.Module, own: OneBitAdam, rank: int, steps: range) -> None:
    for step in steps:
        own.zero_grad()
        model(gradients(rank, step)).backward()
        own.step()


def content(own: OneBitAdam) -> Any:
    """This rank's part of the state."""
    return ours(own.state_dict())


def moment(own: OneBitAdam) -> Tensor:
    return torch.cat([e["exp_avg"].reshape(-1) for e in own.state_dict()["state"].values()])


def follows(rank: int, world: int, ddp: bool, compressor: str, message: int = 0, **options: Any) -> Any:
    kept = flat.MESSAGE
    flat.MESSAGE = message or kept
    try:
        model, own = make(Given(), ddp, compressor=compressor, weight_decay=0.1, **options)
        found = []
        for step in range(STEPS):
            advance(model, own, rank, range(step, step + 1))
            found.append((models.flat(model), moment(own)))
        sent = own.report().bytes_sent
        own.detach()
        return found, own.frozen_at, sent, repr(own.reducer)
    finally:
        flat.MESSAGE = kept


def due(world: int, reducer: Any) -> list[tuple[Tensor, Tensor]]:
    """The page, whose compressed mean is the simulator's."""
    module, simulator = Given(), cc.Simulator(reducer, world)
    sizes = [p.numel() for p in module.parameters()]

    def named(vector: np.ndarray) -> Named:
        parts = torch.from_numpy(vector).split(sizes)
        return {n: part.view(SHAPES[n]) for n, part in zip(SHAPES, parts, strict=True)}

    def mean(inputs: list[np.ndarray]) -> np.ndarray:
        return torch.cat([t.reshape(-1) for t in simulator.mean([named(m) for m in inputs])[0].values()]).numpy()

    own = page.OneBitAdam(models.flat(module).numpy(), sizes, mean, FREEZE, LR, decay=0.1)
    found = []
    for step in range(STEPS):
        own.step([torch.cat([g.reshape(-1) for g in gradients(r, step).values()]).numpy() for r in range(world)])
        found.append((torch.from_numpy(own.x.copy()), torch.from_numpy(own.m.copy())))
    return found


@pytest.mark.parametrize("ddp", [True, False])
@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("world", [2, 3])
def test_the_page(two: Workers, three: Workers, world: int, name: str, ddp: bool) -> None:
    """Parameters and momentum, step for step, and to the bit the same on all ranks."""
    pool = two if world == 2 else three
    results = pool.run(follows, ddp=ddp, compressor=COMPRESSORS[name])
    for found, frozen_at, *_ in results:
        assert frozen_at == FREEZE
        for t, (one, other) in enumerate(zip(found, results[0][0], strict=True)):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), f"step {t}: the ranks drift apart"
    reducer = cc.parse(results[0][3])
    for t, (found, expected) in enumerate(zip(results[0][0], due(world, reducer), strict=True)):
        for a, b in zip(found, expected, strict=True):  # three floats add up in another order: a bit of the last place
            off = (a - b).abs() > 1e-5 + 1e-4 * b.abs()
            assert float(off.float().mean()) < (0.01 if world > 2 or "top" in name else 1e-9), (
                t,
                float((a - b).abs().max()),
            )


def test_cuts_change_nothing(two: Workers) -> None:
    """Parameters in pieces of 1024 elements, in many buckets: the same bits."""
    whole = two.run(follows, ddp=True, compressor="SignScale()")
    cut = two.run(follows, ddp=True, compressor="SignScale()", message=1024)
    assert torch.equal(whole[0][0][-1][0], cut[0][0][-1][0])


def test_what_it_sends(two: Workers, four: Workers) -> None:
    """After the freeze what a dry run says, and no gradients."""
    layout = cc.Layout.of(SHAPES.items())
    for pool, world in ((two, 2), (four, 4)):
        sent = [r[2] for r in pool.run(follows, ddp=True, compressor="SignScale()")]
        for rank, nbytes in enumerate(sent):
            assert nbytes == cc.cost(cc.ErrorFeedback(cc.SignScale()), layout, world, rank).sent


def test_nothing_lost_is_preconditioned_momentum(three: Workers) -> None:
    """With a compressor that loses nothing, the compressed phase is momentum SGD over sqrt(v) + eps."""
    results = three.run(follows, ddp=True, compressor="Exact()")
    expected = due(3, cc.ErrorFeedback(cc.Exact()))
    torch.testing.assert_close(results[0][0][-1][0], expected[-1][0], rtol=1e-5, atol=1e-6)


def conserves(rank: int, world: int, compressor: str) -> Any:
    model, own = make(Given(), compressor=compressor)
    advance(model, own, rank, range(FREEZE))
    total, given = torch.zeros(NUMEL, dtype=torch.float64), torch.zeros(NUMEL, dtype=torch.float64)
    for step in range(FREEZE, STEPS):
        before = moment(own).double()
        advance(model, own, rank, range(step, step + 1))
        total += moment(own)
        given += 0.9 * before + 0.1 * torch.cat([g.reshape(-1) for g in gradients(rank, step).values()])
    slots = tensors(own.state_dict(), SHAPES)
    own.detach()
    return total, given, slots


@pytest.mark.parametrize("name", ["sign", "4 bits", "two-phase top-k"])
def test_conservation(four: Workers, name: str) -> None:
    """sum of m + mean residual + owners' residuals = sum of mean m_i."""
    results = four.run(conserves, compressor=COMPRESSORS[name])
    kept = torch.zeros(NUMEL, dtype=torch.float64)
    layout = cc.Layout.of(SHAPES.items())
    grain = getattr(cc.parse(COMPRESSORS[name]), "grain", 1)
    for rank, (_, _, slots) in enumerate(results):
        for s in layout.segments:
            if s.name in slots["residual"]:
                kept[s.start : s.stop] += slots["residual"][s.name].double() / 4
                share = s.share(rank, 4, grain)
                kept[share.start : share.stop] += slots["server"][s.name].double()
    assert float(kept.abs().max()) > 1e-3
    mean = torch.stack([given for _, given, _ in results]).mean(0)
    torch.testing.assert_close(results[0][0] + kept, mean, rtol=0, atol=2e-5)


def stumbles(rank: int, world: int, when: int, ddp: bool, scaled: bool) -> Any:
    """One rank's gradient is infinite in one step."""
    model, own = make(Given(), ddp)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=10000, enabled=scaled)
    before: list[Any] = []
    for step in range(STEPS):
        own.zero_grad()
        bad, given = step == when, gradients(rank, step)
        if bad and rank == 1:
            given["a"][0, 0] = float("inf")
        scaler.scale(model(given)).backward()
        if bad:
            before = [models.flat(model), copy.deepcopy(own.state_dict())]
        scaler.step(own)
        scaler.update()
        if bad:
            unchanged = torch.equal(models.flat(model), before[0]) and same(before[1], own.state_dict())
    own.detach()
    return models.flat(model), unchanged, own.steps, scaler.get_scale() if scaled else 0


@pytest.mark.parametrize(("ddp", "scaled"), [(True, True), (True, False), (False, True), (False, False)])
def test_one_ranks_bad_step_is_nobodys(two: Workers, ddp: bool, scaled: bool) -> None:
    """In the compressed phase (and, without DDP, before it) all ranks skip it, and go on together."""
    for when in (FREEZE + 3,) if ddp else (1, FREEZE + 3):
        results = two.run(stumbles, when=when, ddp=ddp, scaled=scaled)
        for end, unchanged, steps, _ in results:
            assert unchanged and steps == STEPS - 1
            assert torch.equal(end, results[0][0])
        if scaled:
            assert [scale for *_, scale in results] == [32.0 if ddp else 64.0, 32.0]  # without DDP it is a rank's own


def lives(rank: int, world: int, how: str) -> Any:
    """What training scripts do."""
    torch.manual_seed(0)
    module: nn.Module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Linear(32, 1))
    if how == "bf16":
        module.to(torch.bfloat16)
    model: nn.Module = DDP(module, gradient_as_bucket_view=how == "views")
    if how == "compiled":
        torch._dynamo.reset()  # what earlier tests compiled in this process
        model = torch.compile(model, backend="eager")  # type: ignore[assignment]
    groups = [{"params": [p for p in module.parameters() if p.dim() > 1], "weight_decay": 0.01},
              {"params": [p for p in module.parameters() if p.dim() == 1], "lr": 0.005}]  # fmt: skip
    own = OneBitAdam(
        model, lr=0.003, betas=(0.9, 0.95), freeze=20, timeout=20, params=groups if how == "groups" else None
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(own, 60)
    ddp = getattr(model, "_orig_mod", model)
    dtype = next(module.parameters()).dtype
    losses: list[float] = []

    def loss_of(step: int) -> Tensor:
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(100 * step + rank)).to(dtype)
        y = x[:, :1] * 0.5 + x[:, 1:2]
        return (model(x) - y).float().square().mean()

    for step in range(60):
        if how == "closure":

            def closure(step: int = step) -> Tensor:
                own.zero_grad()
                loss = loss_of(step)
                loss.backward()
                return loss

            losses.append(float(own.step(closure).detach()))
            continue
        own.zero_grad()
        if how == "accumulated":
            with ddp.no_sync():
                loss_of(2 * step + 100).backward()
        loss = loss_of(step)
        loss.backward()
        losses.append(float(loss.detach()))
        if how == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        own.step()
        if how == "scheduled":
            schedule.step()
    end = models.flat(module)
    own.detach()
    return end, losses, own.frozen_at


@pytest.mark.parametrize(
    "how", ["plain", "bf16", "groups", "scheduled", "clipped", "accumulated", "closure", "compiled", "views"]
)
def test_a_training_script(two: Workers, how: str) -> None:
    results = two.run(lives, how=how)
    for end, losses, frozen_at in results:
        assert frozen_at == 20
        assert torch.equal(end, results[0][0])
        assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[18:22]) < 0.45 * np.mean(losses[:4])


class Branches(nn.Module):
    """Uses one of two layers, or both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.left, self.right = nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 40)

    def forward(self, x: Tensor, left: bool, right: bool) -> Tensor:
        h = self.trunk(x)
        return (
            sum(([self.left(h)] if left else []) + ([self.right(h)] if right else []), torch.zeros(())).square().mean()
        )  # type: ignore[call-overload]


def branches(rank: int, world: int, ddp: bool) -> Any:
    """After the freeze: a branch on rank 0 alone, then on no rank."""
    model, own = make(Branches(), ddp, **({"find_unused_parameters": True} if ddp else {}))
    moved: list[bool] = []
    for step in range(FREEZE + 6):
        own.zero_grad()
        late = step - FREEZE
        right = late < 0 or (late < 3 and rank == 0)
        before = next(p.detach().clone() for n, p in model.named_parameters() if n.endswith("right.weight"))
        model(torch.randn(8, 40, generator=torch.Generator().manual_seed(10 * step + rank)), True, right).backward()
        own.step()
        after = next(p for n, p in model.named_parameters() if n.endswith("right.weight"))
        moved.append(not torch.equal(before, after))
    own.detach()
    return models.flat(model), moved


@pytest.mark.parametrize("ddp", [True, False])
def test_branches_that_some_ranks_do_not_use(two: Workers, ddp: bool) -> None:
    results = two.run(branches, ddp=ddp)
    for end, moved in results:
        assert torch.equal(end, results[0][0])
        assert moved[: FREEZE + 3] == [True] * (FREEZE + 3)
        assert ddp or moved[FREEZE + 3 :] == [False] * 3, "no rank has a gradient, so nothing moves"


def saves(rank: int, world: int, folder: str, compressor: str) -> Any:
    model, own = make(Given(), compressor=compressor)
    advance(model, own, rank, range(8))
    x = models.flat(model)
    cc.checkpoint.save(f"{folder}/{rank}.pt", {"x": x, "o": own.state_dict()})
    merged = own.portable_state_dict()
    if rank == 0:
        cc.checkpoint.save(f"{folder}/merged.pt", {"x": x, "o": merged})
    advance(model, own, rank, range(8, STEPS))
    end = models.flat(model)
    own.detach()
    return end, merged


def loads(rank: int, world: int, folder: str, compressor: str, merged: bool) -> Any:
    read = cc.checkpoint.load(f"{folder}/{'merged' if merged else rank}.pt")
    module = Given()
    nn.utils.vector_to_parameters(read["x"], module.parameters())
    model, own = make(module, compressor=compressor)
    own.load_state_dict(read["o"])
    again = own.portable_state_dict()
    advance(model, own, rank, range(8, STEPS))
    end = models.flat(model)
    own.detach()
    return end, again


@pytest.mark.parametrize("name", ["sign", "two-phase top-k"])
def test_checkpoints(four: Workers, two: Workers, name: str, tmp_path: Any) -> None:
    """With four ranks again to the bit; with two the residuals' sum is the same; alone it is in the momentum."""
    options = {"folder": str(tmp_path), "compressor": COMPRESSORS[name]}
    saved = four.run(saves, **options)
    for (end, _), (again, _) in zip(saved, four.run(loads, merged=False, **options), strict=True):
        assert torch.equal(end, again)
    held = own_memory(saved[0][1])
    assert float(held.abs().max()) > 1e-3
    for end, again in two.run(loads, merged=True, **options):
        assert torch.isfinite(end).all()
        torch.testing.assert_close(own_memory(again), held, rtol=0, atol=1e-6)
    alone = OneBitAdam(Given().parameters(), lr=LR, freeze=FREEZE, compressor=cc.parse(COMPRESSORS[name]))
    with pytest.raises(cc.StateError, match=r"the checkpoint has rank 1 of 4, and this is rank 0 of 1"):
        alone.load_state_dict(cc.checkpoint.load(tmp_path / "1.pt")["o"])


def own_memory(merged: Any) -> Tensor:
    slots = tensors(merged, SHAPES)
    return torch.cat([t.reshape(-1) for _, t in sorted(slots["residual"].items())])


def alone_after(rank: int, world: int, folder: str) -> Any:
    model, own = make(Given())
    advance(model, own, rank, range(8))
    m = moment(own)
    merged = own.portable_state_dict()
    own.detach()
    return m, merged


def test_one_rank_goes_on_alone(three: Workers, tmp_path: Any) -> None:
    m, merged = three.run(alone_after, folder=str(tmp_path))[0]
    module = Given()
    named = [(f"module.{n}".removeprefix("module."), p) for n, p in module.named_parameters()]
    own = OneBitAdam(named, lr=LR, freeze=FREEZE)
    own.load_state_dict(merged)
    slots = tensors(merged, SHAPES)["residual"]
    for i, (n, _) in enumerate(named):
        now = own.state_dict()["state"][i]["exp_avg"]
        was = m.split([int(np.prod(s)) for s in SHAPES.values()])[i].view(SHAPES[n])
        held = slots.get(n, torch.zeros(SHAPES[n]))
        torch.testing.assert_close(0.9 * now, 0.9 * was + held)


def differs(rank: int, world: int, option: str) -> Any:
    told: dict[str, Any] = {"freeze": 3 + rank} if option == "freeze" else {"lr": 0.1 * (1 + rank)}
    if option == "wrong":
        told = {"lr": -1.0} if rank == 1 else {}
    return models.caught(lambda: make(Given(), **told))


@pytest.mark.parametrize(
    ("option", "says"), [("freeze", "freeze: 3 on rank 0, 4 on rank 1"), ("lr", "groups"), ("wrong", "lr=-1.0")]
)
def test_ranks_that_differ(two: Workers, option: str, says: str) -> None:
    for rank, (kind, message, _) in enumerate(two.run(differs, option=option)):
        assert kind == ("ValueError" if option == "wrong" and rank == 1 else "AgreementError")
        assert says in message


def hooked(rank: int, world: int) -> Any:
    model, _ = models.wrap(models.mlp(), cc.Exact())
    first = models.caught(lambda: OneBitAdam(model))
    other = DDP(models.mlp())
    own = OneBitAdam(other, freeze=2)
    second = models.caught(lambda: cc.attach(other, cc.Exact()))
    third = models.caught(lambda: OneBitAdam(DDP(models.mlp()), params=list(models.mlp().parameters())))
    fourth = models.caught(lambda: own.add_param_group({"params": [nn.Parameter(torch.zeros(3))]}))
    own.detach()
    return first, second, third, fourth


def test_a_hook_is_taken_once(two: Workers) -> None:
    for first, second, third, fourth in two.run(hooked):
        assert first[0] == "ValueError" and "OneBitAdam: this model has a compcomm reducer already" in first[1]
        assert second[0] == "ValueError" and "this model has the hook" in second[1]
        assert third[0] == "ValueError" and "in no group" in third[1]
        assert fourth[0] == "ValueError" and "DDP(...) has fixed what it averages" in fourth[1]


def deserts(rank: int, world: int) -> Any:
    model, own = make(Given())
    advance(model, own, rank, range(FREEZE + 2))
    before = models.flat(model)
    own.zero_grad()
    model(gradients(rank, 99)).backward()
    if rank == 1:
        import os

        os._exit(3)
    told = models.caught(own.step)
    again = models.caught(own.step)
    return told, again, torch.equal(before, models.flat(model))


def test_a_dead_peer(two: Workers) -> None:
    told, again, same = two.run(deserts, dead=(1,))[0]
    assert told[0] == "TransportError" and "a peer has died" in told[1]
    assert again[0] in ("TransportError", "RuntimeError")
    assert same


def auto(rank: int, world: int) -> Any:
    model, own = make(Given(), freeze="auto", betas=(0.9, 0.95))
    for step in itertools.count():
        advance(model, own, rank, range(step, step + 1))
        if own.frozen_at or step > 200:
            break
    advance(model, own, rank, range(300, 303))
    end = models.flat(model)
    own.detach()
    return own.frozen_at, end


def test_auto_ends_on_all_ranks_at_once(three: Workers) -> None:
    results = three.run(auto)
    assert results[0][0] is not None and len({frozen for frozen, _ in results}) == 1
    assert all(torch.equal(end, results[0][1]) for _, end in results)
