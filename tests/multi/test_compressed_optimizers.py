"""What every compressed optimizer keeps to between processes: its page's numbers, one model on all ranks, nothing lost,
bad steps, what training scripts do, checkpoints for any number of ranks, and peers that differ or die."""

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
from compcomm.optim import flat
from tests.optim.saved import ours, same, tensors

from . import models
from .compressed import (
    COMPRESSORS,
    KINDS,
    LR,
    MEETINGS,
    NUMEL,
    advance,
    apart,
    due,
    given,
    joined,
    make,
    moment,
    ratios,
    residuals,
    scales,
    stretched,
)  # fmt: skip
from .given import SHAPES, Given
from .harness import Workers

pytestmark = pytest.mark.multi
every = pytest.mark.parametrize("kind", KINDS)


def full(*values: Any) -> Any:
    """What another line covers as well."""
    return pytest.param(*values, marks=pytest.mark.full)


def test_every_export_is_here() -> None:
    assert sorted(KINDS) == sorted(cc.optim.__all__)


def follows(rank: int, world: int, kind: str, ddp: bool, compressor: str, message: int = 0) -> Any:
    """x, m, steps apart and ratios of every step; what a step sent in the end."""
    kept = flat.MESSAGE
    flat.MESSAGE = message or kept
    try:
        model, own = make(kind, Given(), ddp, compressor=compressor, weight_decay=0.1)
        found = []
        for step in range(KINDS[kind].steps):
            advance(kind, model, own, rank, range(step, step + 1))
            found.append((models.flat(model), moment(own), apart(own), ratios(own)))
        sent, frozen = own.report().bytes_sent, own.frozen_at
        own.detach()
        return found, frozen, sent, repr(own.reducer)
    finally:
        flat.MESSAGE = kept


PAGES = [
    (kind, name, world, ddp)
    for kind in KINDS
    for name in COMPRESSORS
    if name != "random"  # the simulator counts its draws otherwise
    for world, ddp in ((2, True), (3, False), (2, False), (3, True))
]


def turn(kind: str, name: str) -> tuple[int, bool]:
    """Two ranks under DDP or three without: each optimizer and each compressor meets both."""
    return ((2, True), (3, False))[(list(KINDS).index(kind) + list(COMPRESSORS).index(name)) % 2]


@pytest.mark.parametrize(("kind", "name", "world", "ddp"), [p if p[2:] == turn(*p[:2]) else full(*p) for p in PAGES])
def test_the_page(two: Workers, three: Workers, kind: str, name: str, world: int, ddp: bool) -> None:
    """Parameters and momentum of every rank, step for step; to the bit the same on all wherever they meet."""
    results = (two if world == 2 else three).run(follows, kind=kind, ddp=ddp, compressor=COMPRESSORS[name])
    expected = due(kind, models.flat(Given()), world, cc.parse(results[0][3]))
    loose = kind != "OneBitAdam" or world > 2 or "top" in name
    for rank, (found, frozen_at, *_) in enumerate(results):
        assert frozen_at == KINDS[kind].freeze
        for t, (x, m, alone, (c, phi)) in enumerate(found, 1):
            first, (xs, ms, told) = results[0][0][t - 1], expected[t - 1]
            assert (alone == 0) == (kind != "ZeroOneAdam" or t <= frozen_at or t in MEETINGS), t
            if not alone:
                same_bits = torch.equal(x, first[0]) and torch.equal(m, first[1]) and (c, phi) == first[3]
                assert same_bits, f"step {t}: the ranks drift apart"
            elif rank:
                assert not torch.equal(x, first[0]) and not torch.equal(m, first[1])
            for a, b in zip((x, m), (xs[rank], ms[rank]), strict=True):
                # A sum in another order: a last bit may turn a sign, or what is among the largest.
                off = (a - b).abs() > 1e-5 + 1e-4 * b.abs()
                assert float(off.float().mean()) < (0.01 if loose else 1e-9), (t, float((a - b).abs().max()))
            for a, b in zip((c, phi), told, strict=True):
                assert a == pytest.approx(b, rel=0.1 if "top" in name else 1e-4), t


@pytest.mark.parametrize("kind", ["OneBitAdam", "OneBitLamb"])
def test_cuts_change_nothing_and_a_dry_run_says_what_is_sent(two: Workers, kind: str) -> None:
    """Parameters in pieces of 1024 elements, in many buckets: the same bits. No gradients travel after the freeze."""
    whole = two.run(follows, kind=kind, ddp=True, compressor="SignScale()")
    cut = two.run(follows, kind=kind, ddp=True, compressor="SignScale()", message=1024)
    assert torch.equal(whole[0][0][-1][0], cut[0][0][-1][0])
    for rank, (*_, sent, _) in enumerate(whole):
        assert sent == cc.cost(cc.ErrorFeedback(cc.SignScale()), cc.Layout.of(SHAPES.items()), 2, rank).sent


def conserves(rank: int, world: int, kind: str, compressor: str) -> Any:
    told = KINDS[kind]
    model, own = make(kind, Given(), compressor=compressor)
    advance(kind, model, own, rank, range(told.freeze))
    scale = stretched(scales(own.state_dict())).double()
    total, due, u, steps = *(torch.zeros(NUMEL, dtype=torch.float64) for _ in range(3)), 0
    for step in range(told.freeze, told.steps):
        u += 0.9 * moment(own).double() + 0.1 * joined(given(kind, rank, step).values())
        steps += 1
        advance(kind, model, own, rank, range(step, step + 1))
        if not apart(own):
            total += moment(own) * scale
            due += u * scale / steps
            u, steps = torch.zeros_like(u), 0
    slots = tensors(own.state_dict(), SHAPES)
    own.detach()
    return total, due, slots


@pytest.mark.parametrize("name", ["sign", full("4 bits"), "two-phase top-k"])
@every
def test_conservation(four: Workers, kind: str, name: str) -> None:
    """sum of m + mean residual + owners' residuals = sum of what the ranks would have made of it, since the freeze."""
    results = four.run(conserves, kind=kind, compressor=COMPRESSORS[name])
    kept = torch.zeros(NUMEL, dtype=torch.float64)
    layout, grain = cc.Layout.of(SHAPES.items()), getattr(cc.parse(COMPRESSORS[name]), "alignment", 1)
    for rank, (_, _, slots) in enumerate(results):
        for s in layout.segments:
            if s.name in slots["residual"]:
                kept[s.start : s.stop] += slots["residual"][s.name].double().reshape(-1) / 4
                share = s.share(rank, 4, grain)
                kept[share.start : share.stop] += slots["server"][s.name].double()
    assert float(kept.abs().max()) > 1e-3
    mean = torch.stack([given for _, given, _ in results]).mean(0)
    size = float(mean.abs().max())
    torch.testing.assert_close(results[0][0] + kept, mean, rtol=0, atol=max(2e-5, 1e-6 * size))


def stumbles(rank: int, world: int, kind: str, when: int, ddp: bool, scaled: bool) -> Any:
    """One rank's gradient is infinite in one step."""
    model, own = make(kind, Given(), ddp)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=10000, enabled=scaled)
    before: list[Any] = []
    for step in range(KINDS[kind].steps):
        own.zero_grad()
        bad, now = step == when, given(kind, rank, step)
        if bad and rank == 1:
            now["a"][0, 0] = float("inf")
        scaler.scale(model(now)).backward()
        if bad:
            before = [models.flat(model), copy.deepcopy(own.state_dict())]
        scaler.step(own)
        scaler.update()
        if bad:
            unchanged = torch.equal(models.flat(model), before[0]) and same(before[1], own.state_dict())
    own.detach()
    return models.flat(model), unchanged, own.steps, scaler.get_scale() if scaled else 0


@pytest.mark.parametrize(
    ("ddp", "scaled", "when"),
    [(True, True, 7), full(True, False, 7), (False, True, 1), full(False, True, 7), full(False, False, 1),
     (False, False, 7)],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["OneBitAdam", "OneBitLamb"])
def test_one_ranks_bad_step_is_nobodys(two: Workers, kind: str, ddp: bool, scaled: bool, when: int) -> None:
    """In the compressed phase (and, without DDP, before it) all ranks skip it, and go on together. 0/1 Adam's ranks
    are alone between two synchronisations, and have tests of their own."""
    results = two.run(stumbles, kind=kind, when=when, ddp=ddp, scaled=scaled)
    for end, unchanged, steps, _ in results:
        assert unchanged and steps == KINDS[kind].steps - 1
        assert torch.equal(end, results[0][0])
    if scaled:
        assert [scale for *_, scale in results] == [32.0 if ddp else 64.0, 32.0]  # without DDP it is a rank's own


def lives(rank: int, world: int, kind: str, how: str, **options: Any) -> Any:
    """What training scripts do."""
    told = KINDS[kind]
    torch.manual_seed(0)
    module: nn.Module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Linear(32, 1))
    if how == "bf16":
        module.to(torch.bfloat16)
    model: nn.Module = DDP(module, gradient_as_bucket_view=how == "views")
    if how == "compiled":
        torch._dynamo.reset()  # what earlier tests compiled in this process
        model = torch.compile(model, backend="eager")  # type: ignore[assignment]
    groups = [{"params": [p for p in module.parameters() if p.dim() > 1], "weight_decay": 0.01},
              {"params": [p for p in module.parameters() if p.dim() == 1], **told.group}]  # fmt: skip
    asked = {**told.script, **options, "params": groups if how == "groups" else None}
    own = getattr(cc.optim, kind)(model, timeout=20, **asked)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(own, told.script_steps)
    ddp = getattr(model, "_orig_mod", model)
    dtype = next(module.parameters()).dtype
    losses: list[float] = []

    def loss_of(step: int) -> Tensor:
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(100 * step + rank)).to(dtype)
        if how == "dark":  # weights without a gradient, whose sign is sent all the same
            x[:, 40:] = 0.0
        return (model(x) - x[:, :1] * 0.5 - x[:, 1:2]).float().square().mean()

    for step in range(told.script_steps):
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
        if how == "scheduled" or told.scheduled:
            schedule.step()
    alone = apart(own)
    if alone:
        own.synchronise()
    end = models.flat(module)
    own.detach()
    return end, losses, own.frozen_at, alone, float(module[0].weight.detach()[:, 40:].abs().max())  # type: ignore[index]


def trained(kind: str, results: Any) -> None:
    for end, losses, frozen_at, alone, _ in results:
        assert frozen_at == KINDS[kind].script["freeze"]
        assert torch.equal(end, results[0][0])
        assert (alone > 0) == (kind == "ZeroOneAdam")
        few = 10 if alone else 4
        assert np.mean(losses[-few:]) < KINDS[kind].ends * np.mean(losses[:few])


# What happens beside the optimizer is the same code under all of them: each has its turn.
ALL = ("plain", "bf16", "groups")
TURNS = {"scheduled": 0, "clipped": 1, "accumulated": 2, "closure": 0, "compiled": 1, "views": 2}
LIVES = [(kind, how) for kind in KINDS for how in (*ALL, *TURNS)]


@pytest.mark.parametrize(
    ("kind", "how"), [p if p[1] in ALL or list(KINDS)[TURNS[p[1]]] == p[0] else full(*p) for p in LIVES]
)
def test_a_training_script(two: Workers, kind: str, how: str) -> None:
    trained(kind, two.run(lives, kind=kind, how=how))


OTHERS: dict[str, dict[str, Any]] = {
    "corrected": {"bias_correction": True, "lr": 5e-3},
    "l2": {"decoupled_weight_decay": False, "weight_decay": 0.01},
    "cast": {"warmup": cc.Cast(torch.bfloat16)},
    "dark": {},
}


@pytest.mark.parametrize("how", OTHERS)
def test_other_options_of_zero_one_adam(two: Workers, how: str) -> None:
    results = two.run(lives, kind="ZeroOneAdam", how=how, **OTHERS[how])
    trained("ZeroOneAdam", results)
    assert how != "dark" or results[0][4] < 0.5  # 3000 without a floor


def saves(rank: int, world: int, kind: str, folder: str, at: int, ddp: bool, merged: bool, **told: Any) -> Any:
    """A run, what it saved at step ``at`` (merging makes the ranks meet), and where it ended."""
    model, own = make(kind, Given(), ddp, weight_decay=0.1, **told)
    advance(kind, model, own, rank, range(at))
    alone = apart(own)
    saved = own.portable_state_dict() if merged else own.state_dict()
    x = models.flat(model)
    cc.checkpoint.save(f"{folder}/{rank}.pt", {"x": x, "o": saved})
    advance(kind, model, own, rank, range(at, KINDS[kind].steps))
    end = models.flat(model), ratios(own)
    own.detach()
    return end, x, saved, alone


def loads(rank: int, world: int, kind: str, folder: str, at: int, ddp: bool, merged: bool, **told: Any) -> Any:
    read = cc.checkpoint.load(f"{folder}/{0 if merged else rank}.pt")
    module = Given()
    nn.utils.vector_to_parameters(read["x"], module.parameters())
    model, own = make(kind, module, ddp, weight_decay=0.1, **told)
    own.load_state_dict(read["o"])
    again = own.portable_state_dict() if merged else None
    advance(kind, model, own, rank, range(at, KINDS[kind].steps))
    end = models.flat(model), ratios(own)
    own.detach()
    return end, again


RANDOM = {"compressor": "QSGD(bits=4)", "warmup": "QSGD(bits=8)"}
TOP = {"compressor": COMPRESSORS["two-phase top-k"]}


@pytest.mark.parametrize(
    ("kind", "at", "ddp", "told"),
    [
        ("OneBitAdam", 8, True, {}),
        ("OneBitAdam", 8, False, TOP),
        ("OneBitAdam", 2, False, {}),
        ("OneBitLamb", 2, False, {}),
        ("OneBitLamb", 8, True, {}),
        full("OneBitLamb", 8, False, {}),
        ("ZeroOneAdam", 3, True, {}),
        full("ZeroOneAdam", 5, True, {}),
        full("ZeroOneAdam", 9, True, {}),
        ("ZeroOneAdam", 16, True, {}),
        full("ZeroOneAdam", 3, True, RANDOM),
        ("ZeroOneAdam", 5, True, RANDOM),
        ("ZeroOneAdam", 16, True, RANDOM),
    ],
)  # fmt: skip
def test_a_checkpoint_resumes_to_the_bit(
    two: Workers, four: Workers, kind: str, at: int, ddp: bool, told: dict[str, Any], tmp_path: Any
) -> None:
    """Before the freeze, after it, and between two synchronisations; with owners, whom two ranks have not, between
    four."""
    ranks = four if told else two
    options = {"kind": kind, "folder": str(tmp_path), "at": at, "ddp": ddp, "merged": False, **told}
    saved = ranks.run(saves, **options)
    different = len({tuple(x.tolist()) for _, x, *_ in saved})
    assert different == (ranks.world if kind == "ZeroOneAdam" and at == 16 else 1)
    for (end, *_), (again, _) in zip(saved, ranks.run(loads, **options), strict=True):
        assert torch.equal(end[0], again[0]) and end[1] == again[1]


@pytest.mark.parametrize(
    ("kind", "at", "ddp", "told"),
    [
        ("OneBitAdam", 8, True, {}),
        full("OneBitAdam", 8, True, TOP),
        ("OneBitLamb", 8, True, {}),
        full("OneBitLamb", 2, False, {}),
        ("ZeroOneAdam", 5, True, {}),
        ("ZeroOneAdam", 16, True, {}),
    ],
)
def test_another_number_of_ranks(
    four: Workers, two: Workers, kind: str, at: int, ddp: bool, told: dict[str, Any], tmp_path: Any
) -> None:
    """The ranks meet first; then what they failed to send, momentum and parameters are two ranks', or one's."""
    freeze = KINDS[kind].freeze
    options = {"kind": kind, "folder": str(tmp_path), "at": at, "ddp": ddp, "merged": True, **told}
    saved = four.run(saves, **options)
    merged = saved[0][2]
    held = residuals(merged)
    size = float(held.abs().max())
    for end, x, state, alone in saved:
        assert alone == (2 if kind == "ZeroOneAdam" and at == 16 else 0)
        assert torch.equal(x, saved[0][1]) and torch.equal(end[0], saved[0][0][0])
        assert torch.equal(residuals(state), held) and (size > 1e-3 or at <= freeze)
    results = two.run(loads, **options)
    for end, again in results:
        assert torch.isfinite(end[0]).all() and torch.equal(end[0], results[0][0][0]) and end[1] == results[0][0][1]
        torch.testing.assert_close(residuals(again), held, rtol=0, atol=1e-6 * max(1.0, size))
        for i, entry in merged["state"].items():
            assert same(entry, again["state"][i], "compcomm")
        one, other = ours(again), ours(merged)
        assert all(one[n] == other[n] for n in ("trust", "scaling", "floor", "steps", "frozen_at") if n in other)
    if at > freeze or kind == "ZeroOneAdam":
        own = getattr(cc.optim, kind)(
            list(Given().named_parameters()), lr=LR, freeze=freeze, **KINDS[kind].options,
            **{n: cc.parse(v) for n, v in told.items()},
        )  # fmt: skip
        own.load_state_dict(merged)
        was = joined(e["exp_avg"] for e in merged["state"].values())
        more = held * (1.0 if at > freeze else 0.1) / stretched(scales(merged))
        torch.testing.assert_close(0.9 * moment(own), 0.9 * was + more)


@every
def test_another_ranks_exact_state_is_refused(two: Workers, kind: str, tmp_path: Any) -> None:
    two.run(saves, kind=kind, folder=str(tmp_path), at=8, ddp=True, merged=False)
    alone = getattr(cc.optim, kind)(Given().parameters(), lr=LR, freeze=KINDS[kind].freeze, **KINDS[kind].options)
    with pytest.raises(cc.StateError, match=r"the checkpoint has rank 1 of 2, and this is rank 0 of 1"):
        alone.load_state_dict(cc.checkpoint.load(tmp_path / "1.pt")["o"])


def differs(rank: int, world: int, kind: str, options: list[str]) -> Any:
    """What each difference between ranks is told as."""
    told: list[Any] = []
    for option in options:
        asked: dict[str, Any] = {option: 0.2 * (1 + rank)}
        if option == "freeze" or option in KINDS["ZeroOneAdam"].options:
            asked = {option: 3 + rank}
        elif option == "wrong":
            asked = {"lr": -1.0} if rank == 1 else {}
        told.append(models.caught(lambda asked=asked: make(kind, Given(), **asked)))
    return told


OPTIONS = {
    "OneBitAdam": [],
    "OneBitLamb": ["factor_threshold", "max_coeff"],
    "ZeroOneAdam": ["var_update_scaler", "local_step_scaler", "local_step_clipper"],
}


@every
def test_ranks_that_differ(two: Workers, kind: str) -> None:
    asked = ["freeze", "lr", "wrong", *OPTIONS[kind]]
    for rank, found in enumerate(two.run(differs, kind=kind, options=asked)):
        for option, (raised, message, _) in zip(asked, found, strict=True):
            assert raised == ("ValueError" if option == "wrong" and rank == 1 else "AgreementError"), message
            values = "0.2 on rank 0, 0.4" if option == "factor_threshold" else "3 on rank 0, 4"
            says = {"lr": "groups", "max_coeff": "groups", "wrong": "lr=-1.0"}.get(
                option, f"{option}: {values} on rank 1"
            )
            assert says in message


def deserts(rank: int, world: int, kind: str) -> Any:
    """Rank 1 dies where the ranks were together; the other steps until it misses it."""
    model, own = make(kind, Given())
    ends = 15 if kind == "ZeroOneAdam" else KINDS[kind].freeze + 2
    advance(kind, model, own, rank, range(ends))
    own.zero_grad()
    if kind != "ZeroOneAdam":
        model(given(kind, rank, 99)).backward()
    if rank == 1:
        os._exit(3)
    if kind == "ZeroOneAdam":
        advance(kind, model, own, rank, range(ends, ends + 2))  # alone, and does not know it
        model(given(kind, rank, 99)).backward()
    before, alone = models.flat(model), apart(own)
    told = models.caught(own.step)
    again = models.caught(own.step)
    return told, again, torch.equal(before, models.flat(model)), alone


@every
def test_a_dead_peer(two: Workers, kind: str) -> None:
    told, again, unchanged, alone = two.run(deserts, kind=kind, dead=(1,))[0]
    assert told[0] == "TransportError" and "a peer has died" in told[1]
    if kind == "ZeroOneAdam":
        assert alone == 3
    else:
        assert again[0] in ("TransportError", "RuntimeError") and unchanged
