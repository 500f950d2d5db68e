"""What every compressed optimizer keeps to between processes: its page's numbers, one model on all ranks, nothing lost,
what training scripts do, and checkpoints for any number of ranks."""

from __future__ import annotations

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


def turn(kind: str, name: str) -> tuple[int, bool] | None:
    """Two ranks under DDP, or three without, or not at all: each compressor meets two optimizers, each way once."""
    return ((2, True), (3, False), None)[(list(KINDS).index(kind) + list(COMPRESSORS).index(name)) % 3]


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


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *[(kind, "sign") for kind in KINDS],
        ("OneBitLamb", "two-phase top-k"),
        *[full(kind, "4 bits") for kind in KINDS],
        *[full(kind, "two-phase top-k") for kind in KINDS if kind != "OneBitLamb"],
    ],
)
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


# What happens beside the optimizer is the same code under all of them: each has its turn.
TURNS = {"plain": 1, "bf16": 2, "scheduled": 0, "clipped": 1, "accumulated": 2, "closure": 0, "compiled": 1, "views": 2}
ZERO_ONE: dict[str, dict[str, Any]] = {
    "corrected": {"bias_correction": True, "lr": 5e-3},
    "l2": {"decoupled_weight_decay": False, "weight_decay": 0.01},
    "cast": {"warmup": cc.Cast(torch.bfloat16)},
    "dark": {},
}
LIVES = [
    *[(kind, "groups", {}) for kind in KINDS],
    *[(list(KINDS)[turn], how, {}) for how, turn in TURNS.items()],
    *[full(kind, how, {}) for how, turn in TURNS.items() for kind in KINDS if kind != list(KINDS)[turn]],
    *[("ZeroOneAdam", how, options) for how, options in ZERO_ONE.items()],
]


@pytest.mark.parametrize(("kind", "how", "options"), LIVES)
def test_a_training_script(two: Workers, kind: str, how: str, options: dict[str, Any]) -> None:
    results = two.run(lives, kind=kind, how=how, **options)
    for end, losses, frozen_at, alone, darkest in results:
        assert frozen_at == KINDS[kind].script["freeze"]
        assert torch.equal(end, results[0][0])
        assert (alone > 0) == (kind == "ZeroOneAdam")
        few = 10 if alone else 4
        assert np.mean(losses[-few:]) < KINDS[kind].ends * np.mean(losses[:few])
        assert how != "dark" or darkest < 0.5  # 3000 without a floor


def saves(
    rank: int, world: int, kind: str, folder: str, at: tuple[int, ...], ddp: bool, merged: bool, **told: Any
) -> Any:
    """A run, what it saved at some of its steps (merging makes the ranks meet), and where it ended."""
    model, own = make(kind, Given(), ddp, weight_decay=0.1, **told)
    kept: list[Any] = []
    for step in range(KINDS[kind].steps):
        if step in at:
            alone, saved = apart(own), own.portable_state_dict() if merged else own.state_dict()
            kept.append((models.flat(model), saved, alone))
            cc.checkpoint.save(f"{folder}/{step}-{rank}.pt", {"x": kept[-1][0], "o": saved})
        advance(kind, model, own, rank, range(step, step + 1))
    end = models.flat(model), ratios(own)
    own.detach()
    return end, kept


def loads(
    rank: int, world: int, kind: str, folder: str, at: tuple[int, ...], ddp: bool, merged: bool, **told: Any
) -> Any:
    """Where each of those runs ends, and what it would save at once."""
    found: list[Any] = []
    for step in at:
        read, module = cc.checkpoint.load(f"{folder}/{step}-{0 if merged else rank}.pt"), Given()
        nn.utils.vector_to_parameters(read["x"], module.parameters())
        model, own = make(kind, module, ddp, weight_decay=0.1, **told)
        own.load_state_dict(read["o"])
        again = own.portable_state_dict() if merged else None
        advance(kind, model, own, rank, range(step, KINDS[kind].steps))
        found.append(((models.flat(model), ratios(own)), again))
        own.detach()
    return found


RANDOM = {"compressor": "QSGD(bits=4)", "warmup": "QSGD(bits=8)"}
TOP = {"compressor": COMPRESSORS["two-phase top-k"]}


@pytest.mark.parametrize(
    ("kind", "at", "ddp", "told"),
    [
        ("OneBitAdam", (8,), True, {}),
        ("OneBitAdam", (2, 8), False, TOP),
        ("OneBitLamb", (2, 8), False, {}),
        full("OneBitLamb", (8,), True, {}),
        ("ZeroOneAdam", (3, 9, 16), True, {}),
        ("ZeroOneAdam", (5, 16), True, RANDOM),
    ],
)
def test_a_checkpoint_resumes_to_the_bit(
    two: Workers, four: Workers, kind: str, at: tuple[int, ...], ddp: bool, told: dict[str, Any], tmp_path: Any
) -> None:
    """Before the freeze, after it, and between two synchronisations; with owners, whom two ranks have not, between
    four."""
    ranks = four if told else two
    options = {"kind": kind, "folder": str(tmp_path), "at": at, "ddp": ddp, "merged": False, **told}
    saved = ranks.run(saves, **options)
    for i, step in enumerate(at):
        different = len({tuple(kept[i][0].tolist()) for _, kept in saved})
        assert different == (ranks.world if kind == "ZeroOneAdam" and step == 16 else 1)
    for (end, _), ends in zip(saved, ranks.run(loads, **options), strict=True):
        for again, _ in ends:
            assert torch.equal(end[0], again[0]) and end[1] == again[1]


@pytest.mark.parametrize(
    ("kind", "at", "told"),
    [
        ("OneBitAdam", 8, {}),
        full("OneBitAdam", 8, TOP),
        ("OneBitLamb", 8, {}),
        full("OneBitLamb", 2, {}),
        ("ZeroOneAdam", 5, {}),
        ("ZeroOneAdam", 16, {}),
    ],
)
def test_another_number_of_ranks(
    four: Workers, two: Workers, kind: str, at: int, told: dict[str, Any], tmp_path: Any
) -> None:
    """The ranks meet first; then what they failed to send, momentum and parameters are two ranks', or one's."""
    freeze = KINDS[kind].freeze
    options = {"kind": kind, "folder": str(tmp_path), "at": (at,), "ddp": True, "merged": True, **told}
    saved = [(end, *kept) for end, (kept,) in four.run(saves, **options)]
    merged = saved[0][2]
    held = residuals(merged)
    size = float(held.abs().max())
    for end, x, state, alone in saved:
        assert alone == (2 if kind == "ZeroOneAdam" and at == 16 else 0)
        assert torch.equal(x, saved[0][1]) and torch.equal(end[0], saved[0][0][0])
        assert torch.equal(residuals(state), held) and (size > 1e-3 or at <= freeze)
    results = [found for (found,) in two.run(loads, **options)]
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
    two.run(saves, kind=kind, folder=str(tmp_path), at=(8,), ddp=True, merged=False)
    alone = getattr(cc.optim, kind)(Given().parameters(), lr=LR, freeze=KINDS[kind].freeze, **KINDS[kind].options)
    with pytest.raises(cc.StateError, match=r"the checkpoint has rank 1 of 2, and this is rank 0 of 1"):
        alone.load_state_dict(cc.checkpoint.load(tmp_path / "8-1.pt")["o"])
