"""0/1 Adam between real processes: the page's numbers, one model after every synchronisation, silence between two of
them, memory, bad steps and checkpoints."""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from compcomm.optim import ZeroOneAdam
from tests.optim.saved import ours, same, tensors
from tests.reference import zero_one_adam as page

from . import models
from .given import SHAPES, Given, Named, gradients
from .harness import Workers

pytestmark = pytest.mark.multi

FREEZE, STEPS, LR = 6, 18, 0.01
SCHEDULES = {"var_update_scaler": 2, "local_step_scaler": 3, "local_step_clipper": 4}
REFRESHES, MEETINGS = [1, 2, 4, 6], [7, 8, 9, 10, 12, 14, 18]
NUMEL = sum(int(np.prod(s)) for s in SHAPES.values())
COMPRESSORS = {
    "sign": "SignScale()",
    "4 bits": "QSGD(bits=4, rounding='nearest')",
    "random": "QSGD(bits=4)",
    "two-phase top-k": "TwoPhase(TopK(ratio=0.1))",
}


def make(module: nn.Module, ddp: bool = True, **options: Any) -> tuple[nn.Module, ZeroOneAdam]:
    """A model and its optimizer; ``compressor`` and ``warmup`` as text."""
    told = {k: cc.parse(v) if isinstance(v, str) else v for k, v in options.items()}
    model = DDP(module, bucket_cap_mb=0.004) if ddp else module
    return model, ZeroOneAdam(model, **{"lr": LR, "freeze": FREEZE, "timeout": 20, **SCHEDULES, **told})


def advance(model: nn.Module, own: ZeroOneAdam, rank: int, steps: range) -> None:
    for step in steps:
        own.zero_grad()
        model(gradients(rank, step)).backward()
        own.step()


def content(own: ZeroOneAdam) -> Any:
    """This rank's part of the state."""
    return ours(own.state_dict())


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def replicated(own: ZeroOneAdam, name: str) -> Tensor:
    return flat(e[name] for e in own.state_dict()["state"].values())


def local(own: ZeroOneAdam, name: str) -> Tensor:
    """What this rank has for itself between two synchronisations."""
    return flat(tensors(own.state_dict(), SHAPES)[name if name == "anchor" else f"local {name}"].values())


def moment(own: ZeroOneAdam) -> Tensor:
    return local(own, "exp_avg") if own.local_steps else replicated(own, "exp_avg")


def follows(rank: int, world: int, ddp: bool, compressor: str) -> Any:
    model, own = make(Given(), ddp, compressor=compressor, weight_decay=0.1)
    found = []
    for step in range(STEPS):
        advance(model, own, rank, range(step, step + 1))
        found.append((models.flat(model), moment(own), own.local_steps, own.refreshes))
    own.detach()
    return found, own.frozen_at, repr(own.reducer)


def due(world: int, reducer: Any) -> tuple[list[tuple[list[Tensor], list[Tensor]]], Any]:
    """The page, whose compressed mean is the simulator's: x and m of every rank, step for step."""
    module = Given()
    sizes = [p.numel() for p in module.parameters()]

    def named(vector: np.ndarray) -> Named:
        parts = torch.from_numpy(vector).split(sizes)
        return {n: part.view(SHAPES[n]) for n, part in zip(SHAPES, parts, strict=True)}

    def memory() -> page.Mean:
        simulator = cc.Simulator(reducer, world)
        return lambda inputs: flat(simulator.mean([named(m) for m in inputs])[0].values()).numpy()

    x = models.flat(module).numpy()
    own = page.ZeroOneAdam(x, sizes, world, memory, FREEZE, LR, decay=0.1, **SCHEDULES)
    found = []
    for step in range(STEPS):
        own.step([flat(gradients(r, step).values()).numpy() for r in range(world)])
        found.append(([torch.from_numpy(x.copy()) for x in own.x], [torch.from_numpy(m.copy()) for m in own.m]))
    return found, own


@pytest.mark.parametrize("ddp", [True, False])
@pytest.mark.parametrize("name", ["sign", "4 bits", "two-phase top-k"])
@pytest.mark.parametrize("world", [2, 3])
def test_the_page(two: Workers, three: Workers, world: int, name: str, ddp: bool) -> None:
    """Parameters and momentum of every rank, step for step; to the bit the same on all wherever they meet."""
    pool = two if world == 2 else three
    results = pool.run(follows, ddp=ddp, compressor=COMPRESSORS[name])
    expected, told = due(world, cc.parse(results[0][2]))
    assert told.refreshed == REFRESHES and told.met == MEETINGS
    for rank, (found, frozen_at, _) in enumerate(results):
        assert frozen_at == FREEZE
        for t, (x, m, local, refreshes) in enumerate(found, 1):
            first = results[0][0][t - 1]
            assert refreshes == sum(r <= t for r in REFRESHES)
            assert (local == 0) == (t <= FREEZE or t in MEETINGS), t
            if not local:
                assert torch.equal(x, first[0]) and torch.equal(m, first[1]), f"step {t}: the ranks drift apart"
            elif rank:
                assert not torch.equal(x, first[0]) and not torch.equal(m, first[1])
            for a, b in zip((x, m), expected[t - 1], strict=True):  # a sum in another order: a bit of the last place
                off = (a - b[rank]).abs() > 1e-5 + 1e-4 * b[rank].abs()
                assert float(off.float().mean()) < 0.01, (t, float((a - b[rank]).abs().max()))


def test_nothing_lost(four: Workers) -> None:
    """With a compressor that loses nothing, the page on exact means."""
    results = four.run(follows, ddp=True, compressor="Exact()")
    expected, _ = due(4, cc.ErrorFeedback(cc.Exact()))
    for rank, (found, _, _) in enumerate(results):
        for (x, m, _, _), (xs, ms) in zip(found, expected, strict=True):
            torch.testing.assert_close(x, xs[rank], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(m, ms[rank], rtol=1e-5, atol=1e-5)


def strides(rank: int, world: int, decay: float) -> Any:
    model, own = make(Given(), weight_decay=decay, local_step_scaler=1)
    advance(model, own, rank, range(FREEZE))
    worst, anchors = 0.0, []
    for step in range(FREEZE, STEPS):
        advance(model, own, rank, range(step, step + 1))
        if own.local_steps:
            anchors.append(local(own, "anchor"))
            update = local(own, "update") / replicated(own, "denominator")
            due = content(own)["local"]["shrunk"][0] * (anchors[-1] - update)
            worst = max(worst, float((models.flat(model) - due).abs().max()))
    own.detach()
    return worst, torch.stack(anchors)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_between_two_synchronisations(two: Workers, decay: float) -> None:
    """x_i = P (x_sync - u_i / denominator) on each rank, with the same x_sync on all."""
    results = two.run(strides, decay=decay)
    for worst, anchors in results:
        assert worst < 1e-6
        assert len(anchors) == 7 and torch.equal(anchors, results[0][1])


def conserves(rank: int, world: int, compressor: str) -> Any:
    model, own = make(Given(), compressor=compressor)
    advance(model, own, rank, range(FREEZE))
    total, given, s = torch.zeros(NUMEL, dtype=torch.float64), torch.zeros(NUMEL, dtype=torch.float64), 0
    u = torch.zeros(NUMEL, dtype=torch.float64)
    for step in range(FREEZE, STEPS):
        u += 0.9 * moment(own).double() + 0.1 * flat(gradients(rank, step).values())
        s += 1
        advance(model, own, rank, range(step, step + 1))
        if not own.local_steps:
            total += moment(own)
            given += u / s
            u, s = torch.zeros_like(u), 0
    slots = tensors(own.state_dict(), SHAPES)
    own.detach()
    return total, given, slots


@pytest.mark.parametrize("name", ["sign", "4 bits", "two-phase top-k"])
def test_conservation(four: Workers, name: str) -> None:
    """sum of m + mean residual + owners' residuals = sum of mean u_i/s, since the freeze."""
    results = four.run(conserves, compressor=COMPRESSORS[name])
    kept = torch.zeros(NUMEL, dtype=torch.float64)
    layout, grain = cc.Layout.of(SHAPES.items()), getattr(cc.parse(COMPRESSORS[name]), "grain", 1)
    for rank, (_, _, slots) in enumerate(results):
        for s in layout.segments:
            if s.name in slots["residual"]:
                kept[s.start : s.stop] += slots["residual"][s.name].double() / 4
                share = s.share(rank, 4, grain)
                kept[share.start : share.stop] += slots["server"][s.name].double()
    assert float(kept.abs().max()) > 1e-3
    mean = torch.stack([given for _, given, _ in results]).mean(0)
    torch.testing.assert_close(results[0][0] + kept, mean, rtol=0, atol=2e-5)


def overheard(attachment: Any, calls: list[Any]) -> Any:
    """Notes the collectives that an attachment begins, until the value is called."""
    transport, start = attachment.wire, attachment.wire.start

    def noted(collective: Any) -> Any:
        calls.append(collective)
        return start(collective)

    transport.start = noted
    return lambda: setattr(transport, "start", start)


def listens(rank: int, world: int, ddp: bool) -> Any:
    """Bytes sent and collectives begun by each step."""
    model, own = make(Given(), ddp)
    spoken: list[tuple[int, int]] = []
    reports = []
    for step in range(STEPS):
        attachments = [e.attachment for e in (own.exchange, own.dense) if e is not None]
        calls: list[Any] = []
        ends = [overheard(a, calls) for a in attachments]
        before = sum(a.steps.scheduler.sent for a in attachments)
        advance(model, own, rank, range(step, step + 1))
        spoken.append((sum(a.steps.scheduler.sent for a in attachments) - before, len(calls)))
        for end in ends:
            end()
        if step + 1 in (FREEZE - 1, STEPS):
            reports.append(own.report())
    own.detach()
    return spoken, reports


@pytest.mark.parametrize("ddp", [True, False])
def test_what_it_sends(two: Workers, four: Workers, ddp: bool) -> None:
    """Before the freeze gradients, in full or as a dry run says; after it that, and nothing at all in between."""
    layout = cc.Layout.of(SHAPES.items())
    for pool, world in ((two, 2), (four, 4)):
        for rank, (spoken, reports) in enumerate(pool.run(listens, ddp=ddp)):
            coded = cc.cost(cc.ErrorFeedback(cc.SignScale()), layout, world, rank).sent
            dense = cc.cost(cc.Exact(), layout, world, rank).sent
            for t, (sent, calls) in enumerate(spoken, 1):
                if t <= FREEZE:
                    assert calls > 1
                    assert sent == (dense if t in REFRESHES else coded) or t == FREEZE  # then counting begins anew
                elif t in MEETINGS:
                    assert sent == coded and calls > 0
                else:
                    assert sent == 0 and calls == 0
            early, late = reports
            assert (early.steps, late.steps) == (FREEZE - 1, STEPS - FREEZE)
            assert early.bytes_sent == pytest.approx((3 * dense + 2 * coded) / 5)
            assert late.bytes_sent == pytest.approx(len(MEETINGS) * coded / (STEPS - FREEZE))


def stumbles(rank: int, world: int, when: int, ddp: bool, scaled: range) -> Any:
    """One rank's gradient is infinite in one step; a scaler drives those of ``scaled``."""
    model, own = make(Given(), ddp, weight_decay=0.1)
    used, none = (torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=10000, enabled=e) for e in (True, False))
    met, unchanged = [], False
    for step in range(STEPS):
        own.zero_grad()
        given, scaler = gradients(rank, step), used if step in scaled else none
        if step == when:
            before = models.flat(model), copy.deepcopy(own.state_dict()), moment(own)
            if rank == 1:
                given["a"][0, 0] = float("inf")
        scaler.scale(model(given)).backward()
        scaler.step(own)
        scaler.update()
        if step == when:
            unchanged = torch.equal(models.flat(model), before[0]) and torch.equal(moment(own), before[2])
        if not own.local_steps:
            met.append((own.steps, models.flat(model), moment(own)))
    own.detach()
    return met, unchanged, own.steps, used.get_scale()


@pytest.mark.parametrize(("ddp", "scaled"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("when", [1, 2, 10, 13])
def test_a_bad_gradient(two: Workers, when: int, ddp: bool, scaled: bool) -> None:
    """Before the freeze (in a refresh, in a compressed step) nobody's step counts. After it (in a local step, in a
    synchronising one) that rank's is left out, and all meet as they would have. Where scalers hear of it under DDP, all
    leave it out, and keep one scale."""
    results = two.run(stumbles, when=when, ddp=ddp, scaled=range(STEPS if scaled else 0))
    for rank, (met, unchanged, steps, _) in enumerate(results):
        assert steps == (STEPS - 1 if when < FREEZE else STEPS)
        assert unchanged == (when < FREEZE or (when == 10 and (rank == 1 or (ddp and scaled))))
        assert [t for t, *_ in met if t > FREEZE] == [t for t in MEETINGS if t <= steps]
        for one, other in zip(met, results[0][0], strict=True):
            assert torch.isfinite(one[1]).all()
            assert torch.equal(one[1], other[1]) and torch.equal(one[2], other[2])
    if scaled:
        assert [scale for *_, scale in results] == [32.0 if ddp else 64.0, 32.0]  # without DDP it is a rank's own


@pytest.mark.parametrize(("scaled", "heard"), [(range(8, STEPS), True), (range(9), False)])
def test_a_scaler_that_begins_or_ends_after_the_freeze(two: Workers, scaled: range, heard: bool) -> None:
    """The ranks agree on it when they synchronise: all leave a bad step out, or that rank alone."""
    results = two.run(stumbles, when=10, ddp=True, scaled=scaled)
    assert [unchanged for _, unchanged, *_ in results] == [heard, True]
    assert [scale for *_, scale in results] == [32.0 if heard else 64.0] * 2


def saves(rank: int, world: int, folder: str, at: int, **told: Any) -> Any:
    model, own = make(Given(), weight_decay=0.1, **told)
    advance(model, own, rank, range(at))
    cc.checkpoint.save(f"{folder}/{rank}.pt", {"x": models.flat(model), "o": own.state_dict()})
    advance(model, own, rank, range(at, STEPS))
    end = models.flat(model)
    own.detach()
    return end


def resumes(rank: int, world: int, folder: str, at: int, **told: Any) -> Any:
    read = cc.checkpoint.load(f"{folder}/{rank}.pt")
    model, own = make(Given(), weight_decay=0.1, **told)
    own.load_state_dict(read["o"])
    nn.utils.vector_to_parameters(read["x"], model.parameters())
    advance(model, own, rank, range(at, STEPS))
    end = models.flat(model)
    own.detach()
    return end


@pytest.mark.parametrize("at", [3, 5, 9, 16])
@pytest.mark.parametrize("name", ["sign", "random"])
def test_a_checkpoint_resumes_to_the_bit(four: Workers, name: str, at: int, tmp_path: Any) -> None:
    """Before the freeze, after it, and between two synchronisations."""
    options = {"folder": str(tmp_path), "compressor": COMPRESSORS[name], "at": at}
    if name == "random":
        options["warmup"] = "QSGD(bits=8)"
    saved = four.run(saves, **options)
    assert (len({tuple(cc.checkpoint.load(tmp_path / f"{r}.pt")["x"].tolist()) for r in range(4)}) == 4) == (at == 16)
    for end, again in zip(saved, four.run(resumes, **options), strict=True):
        assert torch.equal(end, again)


def merges(rank: int, world: int, folder: str, at: int) -> Any:
    model, own = make(Given(), weight_decay=0.1)
    advance(model, own, rank, range(at))
    apart = own.local_steps
    merged = own.portable_state_dict()
    assert own.local_steps == 0
    x = models.flat(model)
    if rank == 0:
        cc.checkpoint.save(f"{folder}/merged.pt", {"x": x, "o": merged})
    advance(model, own, rank, range(at, STEPS))
    end = models.flat(model)
    own.detach()
    return apart, x, merged, end


def adopts(rank: int, world: int, folder: str, at: int) -> Any:
    read = cc.checkpoint.load(f"{folder}/merged.pt")
    model, own = make(Given(), weight_decay=0.1)
    own.load_state_dict(read["o"])
    nn.utils.vector_to_parameters(read["x"], model.parameters())
    again = own.portable_state_dict()
    advance(model, own, rank, range(at, STEPS))
    end = models.flat(model)
    own.detach()
    return again, end


def held(merged: Any) -> Tensor:
    slots = tensors(merged, SHAPES)
    return flat(t for _, t in sorted(slots["residual"].items()))


@pytest.mark.parametrize("at", [5, 16])
def test_another_number_of_ranks(four: Workers, two: Workers, at: int, tmp_path: Any) -> None:
    """The ranks meet first; then what they failed to send, momentum and parameters are two ranks', or one's."""
    saved = four.run(merges, folder=str(tmp_path), at=at)
    for apart, x, merged, end in saved:
        assert apart == (2 if at == 16 else 0)
        assert torch.equal(x, saved[0][1]) and torch.equal(end, saved[0][3])
        assert torch.equal(held(merged), held(saved[0][2])) and float(held(merged).abs().max()) > 1e-3
    results = two.run(adopts, folder=str(tmp_path), at=at)
    for again, end in results:
        assert torch.isfinite(end).all() and torch.equal(end, results[0][1])
        torch.testing.assert_close(held(again), held(saved[0][2]), rtol=0, atol=1e-6)
        for i, entry in saved[0][2]["state"].items():
            assert same(entry, again["state"][i], "compcomm")
    merged = saved[0][2]
    alone = ZeroOneAdam([(n, p) for n, p in Given().named_parameters()], lr=LR, freeze=FREEZE, **SCHEDULES)
    alone.load_state_dict(merged)
    slots = tensors(merged, SHAPES)["residual"]
    owed = flat(slots.get(n, torch.zeros(s)) for n, s in SHAPES.items())
    was = flat(e["exp_avg"] for e in merged["state"].values())
    torch.testing.assert_close(0.9 * moment(alone), 0.9 * was + (1.0 if at > FREEZE else 0.1) * owed)


def options(how: str, groups: Any) -> dict[str, Any]:
    return {
        "groups": {"params": groups},
        "corrected": {"bias_correction": True, "lr": 5e-3},
        "l2": {"decoupled_weight_decay": False, "weight_decay": 0.01},
        "cast": {"warmup": cc.Cast(torch.bfloat16)},
    }.get(how, {})


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
              {"params": [p for p in module.parameters() if p.dim() == 1], "lr": 0.001}]  # fmt: skip
    own = ZeroOneAdam(
        model, freeze=20, var_update_scaler=6, local_step_scaler=10, timeout=20, **{"lr": 2e-3, **options(how, groups)}
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(own, 80)
    dtype = next(module.parameters()).dtype
    losses: list[float] = []

    def loss_of(step: int) -> Tensor:
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(100 * step + rank)).to(dtype)
        if how == "dark":  # weights without a gradient, whose sign is sent all the same
            x[:, 40:] = 0.0
        return (model(x) - x[:, :1] * 0.5 - x[:, 1:2]).float().square().mean()

    for step in range(59):
        own.zero_grad()
        if how == "accumulated":
            with getattr(model, "no_sync")():  # noqa: B009
                loss_of(2 * step + 100).backward()
        loss = loss_of(step)
        loss.backward()
        losses.append(float(loss.detach()))
        if how == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        own.step()
        if how == "scheduled":
            schedule.step()
    away = own.local_steps
    own.synchronise()
    end = models.flat(module)
    own.detach()
    return end, losses, away, float(module[0].weight.detach()[:, 40:].abs().max())  # type: ignore[index]


@pytest.mark.parametrize("how", ["plain", "bf16", "groups", "scheduled", "clipped", "accumulated", "compiled", "views"])
def test_a_training_script(two: Workers, how: str) -> None:
    trained(two.run(lives, how=how))


@pytest.mark.parametrize("how", ["corrected", "l2", "cast", "dark"])
def test_other_options(two: Workers, how: str) -> None:
    results = two.run(lives, how=how)
    trained(results)
    assert how != "dark" or results[0][3] < 0.5  # 3000 without a floor


def trained(results: Any) -> None:
    for end, losses, away, _ in results:
        assert away > 0 and torch.equal(end, results[0][0])
        assert np.mean(losses[-10:]) < 0.4 * np.mean(losses[:10])


def idles(rank: int, world: int, rate: float, clipper: int) -> Any:
    """A rate that falls for a while and rises again; and ranks without some gradients."""
    model, own = make(Given(), ddp=False, local_step_clipper=clipper)
    sizes = []
    for step in range(STEPS + 12):
        own.param_groups[0]["lr"] = rate * LR if 14 <= step < 18 else LR
        own.zero_grad()
        g = gradients(rank, step)
        if (step + rank) % 2:
            del g["b"]
        model(g).backward()
        own.step()
        sizes.append(float(moment(own).norm()))
    own.synchronise()
    end = models.flat(model), moment(own), sizes
    own.detach()
    return end


@pytest.mark.parametrize("clipper", [1, 4])
@pytest.mark.parametrize("rate", [0.0, 1e-6, 0.1])
def test_rates_that_fall_and_rise(three: Workers, rate: float, clipper: int) -> None:
    """What was not sent at the old rate does not blow up the momentum of the new one, nor is it lost at none."""
    results = three.run(idles, rate=rate, clipper=clipper)
    usual = results[0][2][13]
    for x, m, sizes in results:
        assert torch.isfinite(x).all() and torch.equal(x, results[0][0]) and torch.equal(m, results[0][1])
        assert all(0.5 * usual < size < 2 * usual for size in sizes[14:])


def likewise(rank: int, world: int, other: bool) -> Any:
    if other:
        model: nn.Module = DDP(Given(), bucket_cap_mb=0.004)
        own: Any = cc.optim.OneBitAdam(model, lr=LR, freeze=FREEZE, weight_decay=0.1, v_floor=0.1)
    else:
        model, own = make(Given(), weight_decay=0.1, var_update_scaler=16, local_step_clipper=1)
    found = []
    for step in range(STEPS):
        advance(model, own, rank, range(step, step + 1))
        found.append(models.flat(model))
    own.detach()
    return found


def test_without_schedules_it_is_1_bit_adam(three: Workers) -> None:
    for one, other in zip(*(three.run(likewise, other=other)[0] for other in (False, True)), strict=True):
        off = (one - other).abs() > 1e-5 + 1e-4 * other.abs()
        assert float(off.float().mean()) < 0.01


def returns(rank: int, world: int, ddp: bool) -> Any:
    model, own = make(Given(), ddp)
    advance(model, own, rank, range(3))
    x, saved = models.flat(model), own.state_dict()
    advance(model, own, rank, range(3, 17))
    due = models.flat(model)
    own.load_state_dict(saved)
    nn.utils.vector_to_parameters(x, model.parameters())
    advance(model, own, rank, range(3, 17))
    again = models.flat(model)
    own.detach()
    return due, again


@pytest.mark.parametrize("ddp", [True, False])
def test_going_back_before_the_freeze(two: Workers, ddp: bool) -> None:
    for due, again in two.run(returns, ddp=ddp):
        assert torch.equal(due, again)


def differs(rank: int, world: int, option: str) -> Any:
    told: dict[str, Any] = {option: 3 + rank} if option != "wrong" else {"local_step_clipper": 0} if rank else {}
    return models.caught(lambda: make(Given(), **told))


@pytest.mark.parametrize("option", ["freeze", "var_update_scaler", "local_step_scaler", "local_step_clipper", "wrong"])
def test_ranks_that_differ(two: Workers, option: str) -> None:
    says = "local_step_clipper=0" if option == "wrong" else f"{option}: 3 on rank 0, 4 on rank 1"
    for rank, (kind, message, _) in enumerate(two.run(differs, option=option)):
        assert kind == ("ValueError" if option == "wrong" and rank == 1 else "AgreementError")
        assert says in message


def hurries(rank: int, world: int) -> Any:
    model, own = make(Given())
    advance(model, own, rank, range(15 + rank))
    told = models.caught(own.synchronise), models.caught(own.portable_state_dict)
    advance(model, own, rank, range(15 + rank, STEPS))
    end = models.flat(model)
    own.detach()
    return told, end


def test_a_synchronisation_at_different_steps(two: Workers) -> None:
    results = two.run(hurries)
    for told, end in results:
        for kind, message, _ in told:
            assert kind == "AgreementError" and "steps: 15 on rank 0, 16 on rank 1" in message
        assert torch.equal(end, results[0][1])


def deserts(rank: int, world: int) -> Any:
    model, own = make(Given())
    advance(model, own, rank, range(15))
    if rank == 1:
        os._exit(3)
    advance(model, own, rank, range(15, 17))  # alone, and does not know it
    return own.local_steps, models.caught(lambda: advance(model, own, rank, range(17, 18)))


def test_a_dead_peer(two: Workers) -> None:
    away, told = two.run(deserts, dead=(1,))[0]
    assert away == 3 and told[0] == "TransportError" and "a peer has died" in told[1]
