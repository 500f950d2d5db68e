"""A model of ``fully_shard`` with a reducer, on real processes: what is remembered, compared and decided, and weights
that are gathered in fewer bytes."""

from __future__ import annotations

import itertools
from hashlib import blake2b
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy

import compcomm as cc
from compcomm.hosts import auto
from compcomm.plan import in_run
from compcomm.plan.link import Link

from . import models, sharded
from .harness import Workers
from .sharded import EF4, fully_shard

pytestmark = pytest.mark.multi

RANDOM = "ErrorFeedback(RandK(ratio=0.2,dense_below=1))"


def resuming(rank: int, world: int, reducers: list[str]) -> Any:
    """Five steps; and two steps, a checkpoint, and the other three from that in another model."""
    told: list[bool] = []
    for reducer in reducers:
        model = sharded.shard(sharded.net())
        hook = sharded.attach(model, reducer, seed=3)
        _, optimizer = sharded.train(model, rank, range(2))
        weights, moments = get_state_dict(model, optimizer)
        saved = [{n: t.clone() for n, t in weights.items()}, moments, hook.state_dict()]
        moments = {k: {n: {s: _copy(t) for s, t in e.items()} for n, e in v.items()} if k == "state" else v for k, v in
                   moments.items()}  # fmt: skip
        losses, _ = sharded.train(model, rank, range(2, 5), optimizer)
        model2 = sharded.shard(sharded.net(3))
        model2 = sharded.shard(sharded.net())
        again = sharded.attach(model2, reducer, seed=3)
        optimizer2 = torch.optim.AdamW(model2.parameters(), lr=3e-3)
        set_state_dict(model2, optimizer2, model_state_dict=saved[0], optim_state_dict=moments)
        again.load_state_dict(saved[2])
        losses2, _ = sharded.train(model2, rank, range(2, 5), optimizer2)
        states = models.slots(hook), models.slots(again)
        told.append(
            losses == losses2
            and sharded.same(sharded.whole(model), sharded.whole(model2))
            and hook.step == again.step == 5
            and all(sharded.same(states[0][slot], states[1][slot]) for slot in states[0])
        )
    return told


def _copy(t: Any) -> Any:
    return t.clone() if isinstance(t, Tensor) else t


def test_it_resumes_bit_for_bit(two: Workers) -> None:
    assert two.run(resuming, reducers=[EF4, RANDOM]) == [[True] * 2] * 2


def remembering(rank: int, world: int, given: Any = None) -> Any:
    """What three steps leave; or what comes of that on other ranks, and one more step."""
    model = sharded.shard(sharded.net())
    hook = sharded.attach(model, EF4)
    if given is not None:
        hook.load_portable_state_dict(given)
        back = hook.portable_state_dict()
    for step in range(3 if given is None else 1):
        sharded.loss_of(model, rank, step).backward()
        mean = sharded.grads(model)
    portable = hook.portable_state_dict()
    if given is None:
        return portable
    due = sharded.summed([given["slots"]["residual"], big(sharded.mean_gradients(world, 0))])
    got = sharded.summed([portable["slots"]["residual"], big(mean)])
    return _off(back["slots"]["residual"], given["slots"]["residual"]), _off(got, due), hook.step


def big(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in found.items() if t.dim() > 1}


def _off(got: dict[str, Tensor], due: dict[str, Tensor]) -> float:
    assert got.keys() == due.keys()
    return max(float((got[n] - due[n]).norm() / due[n].norm()) for n in due)


def test_memory_moves_to_another_number_of_ranks(two: Workers, three: Workers, four: Workers) -> None:
    saved = four.run(remembering)
    assert all(sharded.same(s["slots"]["residual"], saved[0]["slots"]["residual"]) for s in saved)
    assert {n: t.shape for n, t in saved[0]["slots"]["residual"].items()} == {
        n: p.shape for n, p in sharded.net().named_parameters() if p.dim() > 1
    }
    for workers in (two, three):
        for kept, owed, step in workers.run(remembering, given=saved[0]):
            assert kept < 1e-6 and owed < 1e-6 and step == 4


SCHEMES = {
    "LGreCo": "LGreCo(ErrorFeedback(TopK(ratio=0.1,dense_below=1)), every=3, window=2)",
    "bits": "LGreCo(ErrorFeedback(QSGD(bits=4,rounding='nearest',block=16,dense_below=1)), every=3, window=2)",
    "Accordion": "Accordion(ErrorFeedback(TopK(ratio=0.1,dense_below=1)), high=0.02, every=2)",
    "Warmup": f"Warmup(2, {EF4})",
    "Steps": "ErrorFeedback(Steps(TopK(ratio=0.1,dense_below=1), {0: 0.5, 2: 0.1}))",
    "EF21": "EF21(QSGD(bits=4,rounding='nearest',block=16,dense_below=1))",
    "EControl": "EControl(QSGD(bits=4,rounding='nearest',block=16,dense_below=1))",
    "int8": "ErrorFeedback(QSGD(bits=4,rounding='nearest',block=16,dense_below=1), dtype=torch.int8)",
    "sign": "ErrorFeedback(SignScale(block=16,dense_below=1))",
    "cast": "Cast(torch.bfloat16)",
}


def schemes(rank: int, world: int, names: list[str]) -> Any:
    told: dict[str, Any] = {}
    for name in names:
        model = sharded.shard(sharded.net())
        reducer: Any = cc.DGC(cc.TopK(ratio=0.1, dense_below=1), momentum=0.9) if name == "DGC" else SCHEMES[name]
        plain = torch.optim.SGD(model.parameters(), lr=0.05)
        hook = sharded.attach(model, reducer, optimizer=plain)
        losses, _ = sharded.train(model, rank, [0] * 6, plain)
        report = hook.report()
        told[name] = losses, hook.step, str(report), len(hook.telemetry()), hook.choices(), hook.scheduled()
        hook.load_state_dict(hook.state_dict())
        hook.load_portable_state_dict(hook.portable_state_dict())
        sharded.train(model, rank, [0], plain)
        hook.detach()
    return told


def test_every_scheme_trains(two: Workers) -> None:
    for told in two.run(schemes, names=[*SCHEMES, "DGC"]):
        for name, (losses, steps, report, decides, choices, scheduled) in told.items():
            assert losses[-1] < losses[0] and steps == 6 and "bytes sent per step" in report, (name, losses)
            assert bool(decides) == (name in ("LGreCo", "bits", "Accordion"))
            assert bool(choices) == (name in ("LGreCo", "bits", "Accordion", "Steps")) and len(scheduled) <= len(
                choices
            )


class Scaled(nn.Module):
    """A unit, and a parameter outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.scale = nn.Linear(8, 9), nn.Parameter(torch.ones(8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x * self.scale).clone()


def comparing(rank: int, world: int) -> Any:
    """Two steps, compared at the second, with a parameter outside that is equal, unequal, and trained."""
    told: list[Any] = []
    for what in ("equal", "unequal", "trained"):
        torch.manual_seed(0)
        model: Any = Scaled()
        if what == "trained":
            model.scale.requires_grad_(True)
        if what == "unequal" and rank == 1:
            model.scale.data[3] += 1
        model = fully_shard(model, ignored_params={model.scale})
        hook = sharded.attach(model, EF4, check_every=2)
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(rank))
        model(x).square().mean().backward()
        told.append(models.caught(model(x).square().mean().backward))
        hook.detach()
    return told


def test_what_is_not_sharded_is_compared(two: Workers) -> None:
    for equal, unequal, trained in two.run(comparing):
        assert equal[0] == "nothing", equal
        assert unequal[0] == "DivergenceError" and "parameter 'scale' differs between the ranks" in unequal[1]
        assert trained[0] == "DivergenceError" and "'scale' is a part of no module that fully_shard" in trained[1]


def gathering(rank: int, world: int, steps: int, **options: Any) -> Any:
    """The weights that each rank computes with, forwards and backwards, and what became of the shards."""
    model = sharded.shard(sharded.net(), **options)
    start = sharded.whole(model)
    hook = sharded.attach(model, "Exact()", weights=cc.QSGD(bits=8, rounding="nearest", block=16, dense_below=1))
    seen: list[bytes] = []
    own: list[bool] = []
    masters = {id(block): block.up.weight.to_local().clone() for block in model.blocks}

    def look(block: Any, *_: Any) -> None:
        if torch._C._current_graph_task_id() == -1:
            mine = masters[id(block)]
            row = block.up.weight.detach().float().chunk(world)[rank]
            own.append(bool(torch.equal(row, mine)))
        bits = [p.detach().clone().view(torch.uint8).numpy().tobytes() for p in block.parameters()]
        seen.append(blake2b(b"".join(bits)).digest())

    handles = []
    for block in model.blocks:
        handles += [block.norm.register_forward_hook(lambda m, i, o, b=block: look(b))]
        handles += [block.down.register_full_backward_pre_hook(lambda m, g, b=block: look(b))]
    loss = sharded.loss_of(model, rank, 0)
    loss.backward()
    for handle in handles:
        handle.remove()
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, seen)
    alike = all(other == seen for other in everyone) and seen[:2] == seen[2:][::-1] and len(seen) == 4
    untouched = sharded.same(start, sharded.whole(model))
    sharded.grads(model)
    losses, _ = sharded.train(model, rank, range(1, steps))
    report = hook.report()
    return alike, own, untouched, [float(loss.detach()), *losses], report.weight_bytes


BF16 = MixedPrecisionPolicy(torch.bfloat16, torch.float32)


def stock(rank: int, world: int, steps: int) -> list[float]:
    model = sharded.shard(sharded.net())
    first = sharded.loss_of(model, rank, 0)
    first.backward()
    sharded.grads(model)
    return [float(first.detach()), *sharded.train(model, rank, range(1, steps))[0]]


@pytest.mark.parametrize("world, options", [(2, {}), (2, {"mp_policy": BF16}), (4, {"reshard_after_forward": 2})])
def test_all_ranks_compute_with_the_same_weights(two: Workers, four: Workers, world: int, options: Any) -> None:
    workers = two if world == 2 else four
    found = workers.run(gathering, steps=6, **options)
    due = workers.run(stock, steps=6)
    for (alike, own, untouched, losses, sent), expected in zip(found, due, strict=True):
        assert alike and own == [False, False] and untouched
        assert losses == pytest.approx(expected, abs=0.02 if not options.get("mp_policy") else 0.05)
        assert 0 < sent < 2 * 0.6 * sharded.row_bytes(sharded.net(), world)


def spoiled(rank: int, world: int) -> Any:
    model = sharded.shard(sharded.net())
    sharded.attach(model, "Exact()", weights=cc.QSGD(bits=8, rounding="nearest"))
    if rank == 1:
        with torch.no_grad():
            model.blocks[0].up.weight.to_local()[0, 0] = float("nan")
    met: list[bool] = []
    model.blocks[0].norm.register_forward_hook(lambda m, i, o: met.append(bool(m.weight.isnan().all())))
    return bool(sharded.loss_of(model, rank, 0).isnan()), met


def test_weights_that_are_no_numbers_are_none_anywhere(two: Workers) -> None:
    assert two.run(spoiled) == [(True, [True])] * 2


def picks(rank: int, world: int, methods: tuple[str, ...]) -> Any:
    """On a link where steps of a second wait half of it; the controller's line, the reducer, and how far the mean after
    the pick is off."""
    real, tick = (in_run.measure, auto.perf_counter, auto.AutoController.after_step), itertools.count(0.0)
    bits = 8 * sharded.row_bytes(sharded.net(), world) / 0.5
    in_run.measure = lambda *_: Link(0.0, bits)  # pyright: ignore
    auto.perf_counter = lambda: next(tick)
    auto.AutoController.after_step = lambda self, flows, exposed: real[2](self, flows, 0.5)  # type: ignore[method-assign]
    try:
        model = sharded.shard(sharded.net())
        hook = sharded.attach(model, cc.Auto(methods=methods, steps=2))
        sharded.train(model, rank, range(8))
    finally:
        in_run.measure, auto.perf_counter, auto.AutoController.after_step = real  # type: ignore[method-assign]
    plain = sharded.net()
    plain.load_state_dict(sharded.whole(model))
    sharded.loss_of(model, rank, 8).backward()
    off = _off(sharded.grads(model), sharded.mean_gradients(world, 8, plain))
    (controller,) = (o for o in hook.observers if hasattr(o, "auto"))
    return controller.line, repr(hook.reducer), controller.measuring, off


def test_auto_picks_among_what_has_rows(two: Workers) -> None:
    """PowerSGD has none: with the other it is not compared, and alone nothing is."""
    both = two.run(picks, methods=("PowerSGD(2)", "Cast(bfloat16, dense_below=1)"))
    for line, reducer, measuring, off in both:
        assert line.startswith("Auto picks Cast(bfloat16, dense_below=1): a step of 1000 ms waits 500 ms"), line
        assert reducer == "ReduceScatter(Cast(bfloat16, dense_below=1))"
        assert measuring, "the pick has still to stand the test"
        assert 1e-5 < off < 1e-2 and both[0][:2] == (line, reducer)
    for line, reducer, measuring, off in two.run(picks, methods=("PowerSGD(2)",)):
        assert line.endswith("none of the methods fits this model and its optimizer")
        assert reducer == "Exact()" and not measuring and off < 1e-5
