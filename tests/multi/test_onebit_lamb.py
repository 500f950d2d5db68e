"""1-bit LAMB between real processes: the page's numbers, one model and one set of ratios on all ranks, memory, bad
steps, and checkpoints."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from compcomm.optim import OneBitLamb, flat
from tests.optim.saved import ours, same, tensors
from tests.reference import onebit_lamb as page

from . import models
from .given import SHAPES, Given, Named, gradients
from .harness import Workers

pytestmark = pytest.mark.multi

FREEZE, STEPS, LR, BETAS = 4, 12, 0.01, (0.9, 0.95)
SIZES = [int(np.prod(s)) for s in SHAPES.values()]
NUMEL = sum(SIZES)
BENCHMARKS = str(Path(__file__).resolve().parents[2] / "benchmarks")
COMPRESSORS = {
    "sign": "SignScale()",
    "4 bits": "QSGD(bits=4, rounding='nearest')",
    "two-phase top-k": "TwoPhase(TopK(ratio=0.1))",
    "nothing lost": "Exact()",
}


def tilted(rank: int, step: int) -> Named:
    """Gradients of unlike sizes."""
    return {n: g * 10.0 ** (i - 2) for i, (n, g) in enumerate(gradients(rank, step).items())}


def make(module: nn.Module, ddp: bool = True, **options: Any) -> tuple[nn.Module, OneBitLamb]:
    """A model and its optimizer; ``compressor`` as text."""
    told = {k: cc.parse(v) if isinstance(v, str) and k != "freeze" else v for k, v in options.items()}
    model = DDP(module, bucket_cap_mb=0.004) if ddp else module
    return model, OneBitLamb(model, **{"lr": LR, "freeze": FREEZE, "timeout": 20, "betas": BETAS, **told})


def advance(model: nn.Module, own: OneBitLamb, rank: int, steps: range) -> None:
    for step in steps:
        own.zero_grad()
        model(tilted(rank, step)).backward()
        own.step()


def content(own: OneBitLamb) -> Any:
    """This rank's part of the state."""
    return ours(own.state_dict())


def moment(own: OneBitLamb, name: str = "exp_avg") -> Tensor:
    return torch.cat([e[name].reshape(-1) for e in own.state_dict()["state"].values()])


def ratios(own: OneBitLamb) -> tuple[list[float], list[float]]:
    """c and phi."""
    return list(own.coefficients.values()), content(own)["trust"]["factor"]


def stretched(numbers: list[float]) -> Tensor:
    """A number of each parameter, for each of its elements."""
    return torch.cat([torch.full((size,), x) for size, x in zip(SIZES, numbers, strict=True)])


def follows(rank: int, world: int, ddp: bool, compressor: str, message: int = 0, **options: Any) -> Any:
    kept = flat.MESSAGE
    flat.MESSAGE = message or kept
    try:
        model, own = make(Given(), ddp, compressor=compressor, weight_decay=0.1, **options)
        found = []
        for step in range(STEPS):
            advance(model, own, rank, range(step, step + 1))
            found.append((models.flat(model), moment(own), *ratios(own)))
        sent = own.report().bytes_sent
        own.detach()
        return found, own.frozen_at, sent, repr(own.reducer)
    finally:
        flat.MESSAGE = kept


def due(world: int, reducer: Any) -> list[tuple[Tensor, Tensor, list[float], list[float]]]:
    """The page, whose compressed mean is the simulator's."""
    module, simulator = Given(), cc.Simulator(reducer, world)

    def named(vector: np.ndarray) -> Named:
        parts = torch.from_numpy(vector).split(SIZES)
        return {n: part.view(SHAPES[n]) for n, part in zip(SHAPES, parts, strict=True)}

    def mean(inputs: list[np.ndarray]) -> np.ndarray:
        return torch.cat([t.reshape(-1) for t in simulator.mean([named(m) for m in inputs])[0].values()]).numpy()

    own = page.OneBitLamb(models.flat(module).numpy(), SIZES, mean, FREEZE, LR, BETAS, decay=0.1)
    found = []
    for step in range(STEPS):
        own.step([torch.cat([g.reshape(-1) for g in tilted(r, step).values()]).numpy() for r in range(world)])
        found.append((torch.from_numpy(own.x.copy()), torch.from_numpy(own.m.copy()), list(own.c), list(own.phi)))
    return found


@pytest.mark.parametrize("ddp", [True, False])
@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("world", [2, 3])
def test_the_page(two: Workers, three: Workers, world: int, name: str, ddp: bool) -> None:
    """Parameters, momentum and ratios, step for step, and to the bit the same on all ranks."""
    pool = two if world == 2 else three
    results = pool.run(follows, ddp=ddp, compressor=COMPRESSORS[name])
    for found, frozen_at, *_ in results:
        assert frozen_at == FREEZE
        for t, (one, other) in enumerate(zip(found, results[0][0], strict=True)):
            assert all(torch.equal(a, b) for a, b in zip(one[:2], other[:2], strict=True)), (
                f"step {t}: ranks drift apart"
            )
            assert one[2:] == other[2:]
    reducer = cc.parse(results[0][3])
    for t, (found, expected) in enumerate(zip(results[0][0], due(world, reducer), strict=True)):
        for a, b in zip(
            found[:2], expected[:2], strict=True
        ):  # a last bit may turn a sign, or what is among the largest
            off = (a - b).abs() > 1e-5 + 1e-4 * b.abs()
            assert float(off.float().mean()) < 0.01, (t, float((a - b).abs().max()))
        for a, b in zip(found[2:], expected[2:], strict=True):
            assert a == pytest.approx(b, rel=1e-4 if name != "two-phase top-k" else 0.1), t


def test_cuts_change_nothing(two: Workers) -> None:
    """Parameters in pieces of 1024 elements, in many buckets: the same bits."""
    whole = two.run(follows, ddp=True, compressor="SignScale()")
    cut = two.run(follows, ddp=True, compressor="SignScale()", message=1024)
    assert torch.equal(whole[0][0][-1][0], cut[0][0][-1][0]) and whole[0][0][-1][2:] == cut[0][0][-1][2:]


def test_what_it_sends(two: Workers, four: Workers) -> None:
    """After the freeze what a dry run says, and no gradients."""
    layout = cc.Layout.of(SHAPES.items())
    for pool, world in ((two, 2), (four, 4)):
        sent = [r[2] for r in pool.run(follows, ddp=True, compressor="SignScale()")]
        for rank, nbytes in enumerate(sent):
            assert nbytes == cc.cost(cc.ErrorFeedback(cc.SignScale()), layout, world, rank).sent


def reconstructs(rank: int, world: int) -> Any:
    """With nothing lost: the gradient that m and w tell of, and momentum that was never scaled."""
    model, own = make(Given(), compressor="Exact()", betas=(0.9, 0.5))
    advance(model, own, rank, range(FREEZE))
    plain, errors = moment(own), list[float]()
    floor = stretched(content(own)["floor"]).double()
    for step in range(FREEZE, STEPS):
        m, w = moment(own).double(), moment(own, "exp_avg_sq").double()
        advance(model, own, rank, range(step, step + 1))
        g = [torch.cat([t.reshape(-1) for t in tilted(r, step).values()]) for r in range(world)]
        mean = torch.stack(g).double().mean(0)
        size = stretched([float(t.double().norm()) / t.numel() ** 0.5 for t in mean.split(SIZES)])
        h = (moment(own).double() - 0.9 * m) / (1 - 0.9)
        square = (moment(own, "exp_avg_sq").double() - torch.maximum(0.5 * w, floor**2)) / 0.5
        errors += [float(((h - mean) / size).abs().max()), float(((square - mean**2) / size**2).abs().max())]
        plain = 0.9 * plain + (1 - 0.9) * mean.float()
        errors.append(float(((moment(own) - plain) / size).abs().max()))
    scaling = content(own)["scaling"]
    own.detach()
    return errors, scaling


def test_nothing_lost_is_the_mean_gradient(three: Workers) -> None:
    """What is reconstructed is the mean gradient, and scales that differ by thousands leave no trace, but rounding."""
    for errors, scaling in three.run(reconstructs):
        assert max(scaling) / min(scaling) > 1000
        assert max(errors) < 2e-5


def conserves(rank: int, world: int, compressor: str) -> Any:
    model, own = make(Given(), compressor=compressor)
    advance(model, own, rank, range(FREEZE))
    scale = stretched(content(own)["scaling"]).double()
    total, given = torch.zeros(NUMEL, dtype=torch.float64), torch.zeros(NUMEL, dtype=torch.float64)
    for step in range(FREEZE, STEPS):
        before = moment(own).double()
        advance(model, own, rank, range(step, step + 1))
        total += moment(own) * scale
        given += (0.9 * before + 0.1 * torch.cat([g.reshape(-1) for g in tilted(rank, step).values()])) * scale
    slots = tensors(own.state_dict(), SHAPES)
    own.detach()
    return total, given, slots


@pytest.mark.parametrize("name", ["sign", "4 bits", "two-phase top-k"])
def test_conservation(four: Workers, name: str) -> None:
    """sum of s m + mean residual + owners' residuals = sum of mean s m_i."""
    results = four.run(conserves, compressor=COMPRESSORS[name])
    kept = torch.zeros(NUMEL, dtype=torch.float64)
    layout = cc.Layout.of(SHAPES.items())
    grain = getattr(cc.parse(COMPRESSORS[name]), "grain", 1)
    for rank, (_, _, slots) in enumerate(results):
        for s in layout.segments:
            if s.name in slots["residual"]:
                kept[s.start : s.stop] += slots["residual"][s.name].double().reshape(-1) / 4
                share = s.share(rank, 4, grain)
                kept[share.start : share.stop] += slots["server"][s.name].double()
    assert float(kept.abs().max()) > 1e-3
    mean = torch.stack([given for _, given, _ in results]).mean(0)
    size = float(mean.abs().max())
    assert size > 1.0
    torch.testing.assert_close(results[0][0] + kept, mean, rtol=0, atol=1e-6 * size)


class Wide(nn.Module):
    """Enough elements for torch to share them out between threads."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 1, 400 * 333).view(400, 333))
        self.b = nn.Parameter(torch.linspace(-0.1, 0.2, 70_001))
        self.c = nn.Parameter(torch.linspace(-1, 3, 11))

    def forward(self, gradients: list[Tensor]) -> Tensor:
        return torch.stack([(p * g.to(p.dtype)).sum() for p, g in zip(self.parameters(), gradients, strict=True)]).sum()


def threads(rank: int, world: int, ddp: bool, dtype: str) -> Any:
    kept = torch.get_num_threads()
    torch.set_num_threads(1 + 2 * rank)
    try:
        model = Wide().to(getattr(torch, dtype))
        host: Any = DDP(model) if ddp else model
        own = OneBitLamb(host, lr=LR, freeze=3, weight_decay=0.1, betas=BETAS, timeout=20)
        found = []
        for step in range(8):
            draw = torch.Generator().manual_seed(100 * step + rank)
            own.zero_grad()
            host([torch.randn(p.shape, generator=draw) for p in model.parameters()]).backward()
            own.step()
            found.append((models.flat(model), *ratios(own)))
        scaling, floor = content(own)["scaling"], content(own)["floor"]
        own.detach()
        return found, scaling, floor, torch.get_num_threads()
    finally:
        torch.set_num_threads(kept)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ddp", [True, False])
def test_the_number_of_threads_decides_nothing(three: Workers, ddp: bool, dtype: str) -> None:
    """x, c, phi, scales and floors are the same to the bit with 1, 3 and 5 threads."""
    results = three.run(threads, ddp=ddp, dtype=dtype)
    assert [count for *_, count in results] == [1, 3, 5]
    first, scaling, floor, _ = results[0]
    for found, *others, _ in results[1:]:
        assert others == [scaling, floor]
        for t, (one, other) in enumerate(zip(first, found, strict=True)):
            assert torch.equal(one[0], other[0]) and one[1:] == other[1:], t
    assert any(phi != 1.0 for phi in first[-1][2])


def stumbles(rank: int, world: int, when: int, ddp: bool, scaled: bool) -> Any:
    """One rank's gradient is infinite in one step."""
    model, own = make(Given(), ddp)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=10000, enabled=scaled)
    before: list[Any] = []
    for step in range(STEPS):
        own.zero_grad()
        bad, given = step == when, tilted(rank, step)
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
            assert [scale for *_, scale in results] == [32.0 if ddp else 64.0, 32.0]


def branches(rank: int, world: int) -> Any:
    """Without DDP, after the freeze: a parameter's gradient on rank 0 alone, then on no rank."""
    model, own = make(Given(), False, weight_decay=0.1)
    kept: list[Any] = []
    for step in range(FREEZE + 6):
        own.zero_grad()
        late = step - FREEZE
        given = tilted(rank, step)
        if late >= 3 or (late >= 0 and rank == 1):
            del given["b"]
        model(given).backward()
        own.step()
        entry = own.state_dict()["state"][1]
        p = dict(model.named_parameters())["b"].detach().clone()
        kept.append((p, entry["exp_avg"], entry.get("exp_avg_sq"), ratios(own)[1][1]))
    own.detach()
    return models.flat(model), kept


def test_a_parameter_that_some_ranks_do_not_use(two: Workers) -> None:
    """Where no rank has a gradient all that is its own stays as it is."""
    results = two.run(branches)
    for end, kept in results:
        assert torch.equal(end, results[0][0])
        assert not torch.equal(kept[FREEZE + 1][0], kept[FREEZE + 2][0])
        for x, m, w, phi in kept[FREEZE + 3 :]:
            old = kept[FREEZE + 2]
            assert torch.equal(x, old[0]) and torch.equal(m, old[1]) and torch.equal(w, old[2]) and phi == old[3]


def lives(rank: int, world: int, how: str) -> Any:
    """What training scripts do."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Linear(32, 1))
    if how == "bf16":
        module.to(torch.bfloat16)
    model: Any = DDP(module, gradient_as_bucket_view=True)
    if how == "compiled":
        torch._dynamo.reset()  # what earlier tests compiled in this process
        model = torch.compile(model, backend="eager")
    groups = [{"params": [p for p in module.parameters() if p.dim() > 1], "weight_decay": 0.01},
              {"params": [p for p in module.parameters() if p.dim() == 1], "adapt": False, "lr": 0.005}]  # fmt: skip
    own = OneBitLamb(model, lr=0.05, freeze=8, timeout=20, params=groups if how == "groups" else None)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(own, 40)
    losses: list[float] = []
    for step in range(40):
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(100 * step + rank)).to(module[0].weight.dtype)
        own.zero_grad()
        loss = (model(x) - x[:, :1] * 0.5 - x[:, 1:2]).float().square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        if how == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        own.step()
        schedule.step()
    end = models.flat(module)
    own.detach()
    return end, losses, own.frozen_at


@pytest.mark.parametrize("how", ["plain", "bf16", "groups", "clipped", "compiled"])
def test_a_training_script(two: Workers, how: str) -> None:
    results = two.run(lives, how=how)
    for end, losses, frozen_at in results:
        assert frozen_at == 8
        assert torch.equal(end, results[0][0])
        assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])


def digits(rank: int, world: int, **options: Any) -> Any:
    sys.path.insert(0, BENCHMARKS)
    try:
        from tasks.digits import Digits

        task = Digits()
    finally:
        sys.path.remove(BENCHMARKS)
    module = task.model(0)
    model = DDP(module)
    own = OneBitLamb(model, lr=0.01, freeze=60, timeout=20, **options)
    for step in range(300):
        x, y = task.batch(0, step, rank)
        own.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        own.step()
    own.detach()
    with torch.no_grad():
        logits = module(task.held_out.x)
    accuracy = (logits.argmax(1) == task.held_out.y).float().mean()
    return float(functional.cross_entropy(logits, task.held_out.y)), float(accuracy)


@pytest.mark.slow
def test_digits_need_the_floor(four: Workers) -> None:
    """Dark corners never have a gradient; without a floor their steps are bounded by nothing."""
    loss, accuracy = four.run(digits)[0]
    assert loss < 0.12 and accuracy > 0.96, (loss, accuracy)
    loss, accuracy = four.run(digits, v_floor=0.0)[0]
    assert not loss < 2.0 and accuracy < 0.5, (loss, accuracy)


def saves(rank: int, world: int, folder: str, at: int, ddp: bool) -> Any:
    model, own = make(Given(), ddp, weight_decay=0.1)
    advance(model, own, rank, range(at))
    x = models.flat(model)
    cc.checkpoint.save(f"{folder}/{rank}.pt", {"x": x, "o": own.state_dict()})
    merged = own.portable_state_dict()
    if rank == 0:
        cc.checkpoint.save(f"{folder}/merged.pt", {"x": x, "o": merged})
    advance(model, own, rank, range(at, STEPS))
    end = models.flat(model), ratios(own)
    own.detach()
    return end, merged


def loads(rank: int, world: int, folder: str, at: int, ddp: bool, merged: bool) -> Any:
    read = cc.checkpoint.load(f"{folder}/{'merged' if merged else rank}.pt")
    module = Given()
    nn.utils.vector_to_parameters(read["x"], module.parameters())
    model, own = make(module, ddp)
    own.load_state_dict(read["o"])
    again = own.portable_state_dict()
    advance(model, own, rank, range(at, STEPS))
    end = models.flat(model), ratios(own)
    own.detach()
    return end, again


def own_memory(merged: Any) -> Tensor:
    slots = tensors(merged, SHAPES)
    return torch.cat([t.reshape(-1) for _, t in sorted(slots["residual"].items())])


@pytest.mark.parametrize(("at", "ddp"), [(2, False), (8, False), (8, True)])
def test_checkpoints(four: Workers, two: Workers, at: int, ddp: bool, tmp_path: Any) -> None:
    """With four ranks again to the bit; with two the residuals' sum is the same, and so is all else."""
    options = {"folder": str(tmp_path), "at": at, "ddp": ddp}
    saved = four.run(saves, **options)
    for (end, _), (again, _) in zip(saved, four.run(loads, merged=False, **options), strict=True):
        assert torch.equal(end[0], again[0]) and end[1] == again[1]
    results = two.run(loads, merged=True, **options)
    for end, again in results:
        assert torch.equal(end[0], results[0][0][0]) and end[1] == results[0][0][1]
        if at > FREEZE:
            held = own_memory(saved[0][1])
            assert float(held.abs().max()) > 1e-3
            torch.testing.assert_close(own_memory(again), held, rtol=0, atol=1e-6 * float(held.abs().max()))
            one, other = ours(again), ours(saved[0][1])
            assert all(one[name] == other[name] for name in ("trust", "scaling", "floor", "steps", "frozen_at"))


def alone_after(rank: int, world: int) -> Any:
    model, own = make(Given())
    advance(model, own, rank, range(8))
    m = moment(own)
    merged = own.portable_state_dict()
    own.detach()
    return m, merged


def test_one_rank_goes_on_alone(three: Workers) -> None:
    """What was held back, in the momentum's own units, arrives in the next momentum."""
    m, merged = three.run(alone_after)[0]
    own = OneBitLamb(Given().named_parameters(), lr=LR, freeze=FREEZE, betas=BETAS)
    own.load_state_dict(merged)
    content = ours(merged)
    held = tensors(merged, SHAPES)["residual"]
    assert held
    for i, (n, was) in enumerate(zip(SHAPES, m.split(SIZES), strict=True)):
        now = own.state_dict()["state"][i]["exp_avg"]
        more = held.get(n, torch.zeros(SHAPES[n])) / content["scaling"][i]
        torch.testing.assert_close(0.9 * now, 0.9 * was.view(SHAPES[n]) + more)


def differs(rank: int, world: int, option: str) -> Any:
    told: dict[str, Any] = {option: 0.2 * (1 + rank)}
    return models.caught(lambda: make(Given(), **told))


@pytest.mark.parametrize(
    ("option", "says"),
    [("factor_threshold", "factor_threshold: 0.2 on rank 0, 0.4 on rank 1"), ("max_coeff", "groups"), ("lr", "groups")],
)
def test_ranks_that_differ(two: Workers, option: str, says: str) -> None:
    for kind, message, _ in two.run(differs, option=option):
        assert kind == "AgreementError" and says in message
