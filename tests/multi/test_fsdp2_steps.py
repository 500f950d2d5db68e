"""A model of ``fully_shard`` with a reducer, on real processes: every backward pass that averages is a step, however
the model is built, wrapped and called, and nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import Shard
from torch.utils.checkpoint import checkpoint

from . import models, sharded
from .harness import Workers
from .sharded import EF4, Net, fully_shard

pytestmark = pytest.mark.multi


class Checkpointed(Net):
    """Blocks are computed again in the backward pass."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x)
        for block in self.blocks:
            y = checkpoint(block, y, use_reentrant=self.reentrant)
        return torch.cat([self.head(y), self.few(y)], -1)


class Reentrant(Checkpointed):
    reentrant = True


class Twice(Net):
    """Its first block comes two times."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.cat([self.head(self.blocks[0](self.words(x))), self.few(self.words(x))], -1)


def alike(kind: type[Net]) -> Net:
    torch.manual_seed(0)
    return kind()


def roots(model: Net, **options: Any) -> Net:
    """Several roots, as where another method than the model's forward is called."""
    for part in (*model.blocks, model.words, model.few, model.head):
        fully_shard(part, **options)
    return model


def inner(model: Net) -> Net:
    """The outermost module has no parameters of its own."""
    for part in (*model.blocks, model.words, model.few, model.head):
        fully_shard(part)
    return fully_shard(model)


def grouped(model: Net) -> Net:
    fully_shard([model.words, model.head])
    return fully_shard(model)


def along(model: Net) -> Net:
    """The embedding is cut along its second dimension."""

    def place(p: Tensor) -> Shard:
        return Shard(1) if p.shape == (13, 10) else Shard(0)

    return sharded.shard(model, shard_placement_fn=place)


def compiled(model: Net) -> Net:
    for block in model.blocks:
        block.compile(backend="aot_eager")
    return sharded.shard(model)


def tied(model: Net) -> Net:
    model.head.weight = model.words.weight
    return sharded.shard(model)


BUILT: dict[str, tuple[type[Net], Callable[..., Any]]] = {
    "plain": (Net, sharded.shard),
    "several roots": (Net, roots),
    "a root without parameters": (Net, inner),
    "checkpointed": (Checkpointed, sharded.shard),
    "reentrant": (Reentrant, sharded.shard),
    "reentrant, several roots": (Reentrant, roots),
    "[a, b]": (Net, grouped),
    "a block twice": (Twice, sharded.shard),
    "Shard(1)": (Net, along),
    "tied": (Net, tied),
    "kept": (Net, partial(sharded.shard, reshard_after_forward=False)),
    "resharded": (Net, partial(sharded.shard, reshard_after_forward=True)),
    "offloaded": (Net, partial(sharded.shard, offload_policy=CPUOffloadPolicy(pin_memory=False))),
    "compiled blocks": (Net, compiled),
}


def reference(kind: type[Net], name: str) -> Net:
    made = alike(kind)
    if name == "tied":
        made.head.weight = made.words.weight
    return made


def counting(rank: int, world: int, names: list[str]) -> Any:
    """Steps of four passes, and how far conservation is off."""
    told: dict[str, Any] = {}
    for name in names:
        kind, build = BUILT[name]
        model = build(alike(kind))
        hook = sharded.attach(model, EF4)
        means, steps = list[Any](), list[int]()
        for step in range(4):
            sharded.loss_of(model, rank, step).backward()
            means.append(sharded.grads(model))
            steps.append(hook.step)
        due = [sharded.mean_gradients(world, step, reference(kind, name)) for step in range(4)]
        told[name] = steps, sharded.gap(means, hook, due), hook.steps.open
    return told


@pytest.mark.parametrize("names", [list(BUILT)[:7], list(BUILT)[7:]])
def test_every_pass_is_a_step_and_nothing_is_lost(two: Workers, names: list[str]) -> None:
    for told in two.run(counting, names=names):
        for name, (steps, off, still_open) in told.items():
            assert steps == [1, 2, 3, 4] and not still_open, name
            assert off < 1e-6, name


def big(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is coded, and fed back."""
    return {n: t for n, t in found.items() if t.dim() > 1}


def pacing(rank: int, world: int) -> Any:
    """Passes that add up, that are not counted, and that are taken back."""
    model = sharded.shard(sharded.net())
    hook = sharded.attach(model, EF4, discardable=True)
    means, due, steps = list[Any](), list[Any](), list[int]()

    def run(step: int, again: bool = False) -> None:
        loss = sharded.loss_of(model, rank, step)
        loss.backward(retain_graph=again)
        if again:
            loss.backward()

    def over(*passes: int) -> None:
        steps.append(hook.step)
        means.append(sharded.grads(model))
        due.extend(sharded.mean_gradients(world, step) for step in passes)

    model.set_requires_gradient_sync(False)
    run(0)
    model.set_requires_gradient_sync(True)
    run(1)
    over(0, 1)
    run(2)
    run(3)
    over(2, 3)
    run(4, again=True)
    over(4, 4)
    before = models.slots(hook)
    with hook.ignoring():
        run(5)
    over(5)
    exact = sharded.summed([means[-1], *({n: -t for n, t in g.items()} for g in due[-1:])])
    hook.enabled = False
    run(6)
    hook.enabled = True
    over(6)
    kept = sharded.same(models.slots(hook)["residual"], before["residual"])
    run(7)
    sharded.grads(model)
    hook.discard()
    kept = kept and sharded.same(models.slots(hook)["residual"], before["residual"])
    run(8)
    over(8)
    errors = hook.errors()
    told = [
        models.caught(lambda: hook.ignoring(average=False)),
        models.caught(lambda: setattr(hook, "passes", 2)),
        models.caught(lambda: (hook.discard(), hook.discard())),
    ]
    hook.reset_state()
    cleared = not any(bool(t.any()) for t in models.slots(hook)["residual"].values())
    hook.detach()
    told.append(models.caught(lambda: hook.state_dict() and hook.check()))
    return steps, kept, max(float(t.abs().max()) for t in exact.values()), errors, told, cleared, (means, due)


def test_passes_that_add_up_are_ignored_or_taken_back(two: Workers) -> None:
    for steps, kept, off, errors, told, cleared, (means, due) in two.run(pacing):
        assert steps == [1, 3, 5, 5, 6, 7] and kept and off < 1e-6 and cleared
        assert 0 < errors["head.weight"] < 1 and errors["head.bias"] is None
        assert [name for name, *_ in told] == ["ValueError", "ValueError", "StateError", "RuntimeError"]
        assert "set_requires_gradient_sync(False)" in told[0][1] and "set_requires_gradient_sync" in told[1][1]
        assert "was detached" in told[3][1]
        sent, wanted = sharded.summed(means), sharded.summed(due)
        for n, t in wanted.items():  # what 4 bits left in the residual is small beside nine passes
            assert float((sent[n] - t).norm()) < 0.2 * float(t.norm()), n


class Skips(Net):
    """Its second block is not used in every pass."""

    skip: Any = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks[0](self.words(x))
        y = y if self.skip else self.blocks[1](y)
        return torch.cat([self.head(y), self.few(y)], -1)


def skipping(rank: int, world: int) -> Any:
    told: list[Any] = []
    for build in (sharded.shard, roots):
        model: Any = build(alike(Skips))
        plain: Any = alike(Skips)
        hook = sharded.attach(model, EF4)
        means, due, steps = list[Any](), list[Any](), list[int]()
        for step, skip in enumerate((True, False, True, True, False)):
            model.skip = plain.skip = skip
            sharded.loss_of(model, rank, step).backward()
            means.append(sharded.grads(model))
            due.append(sharded.mean_gradients(world, step, plain))
            steps.append(hook.step)
        told.append((steps, sharded.gap(means, hook, due)))
    return told


def test_units_that_stay_away(two: Workers) -> None:
    for told in two.run(skipping):
        for steps, off in told:
            assert steps == [1, 2, 3, 4, 5] and off < 1e-6


def stop(*_: Any) -> None:
    raise ArithmeticError("made to fail")


def raising(rank: int, world: int, where: str) -> Any:
    """A backward pass that raises on every rank, and one more forward pass before FSDP is told."""
    model = sharded.shard(sharded.net())
    hook = sharded.attach(model, EF4)
    means, due = list[Any](), list[Any]()
    told: list[Any] = []
    for step in range(4):
        loss = sharded.loss_of(model, rank, step)
        if step == 1:
            if where == "middle":
                handle = model.blocks[0].register_full_backward_pre_hook(stop)
                loss = sharded.loss_of(model, rank, step)
                handle.remove()
            else:
                loss = model(sharded.given(rank, step)[0])
                loss.register_hook(stop)
                loss = loss.sum()
        if step != 1:
            loss.backward()
            means.append(big(sharded.grads(model)))
            due.append(big(sharded.mean_gradients(world, step)))
            continue
        told.append(models.caught(loss.backward))
        sharded.grads(model)  # of the one block that came
        if where == "middle":
            told.append(models.caught(hook.state_dict))
            due.append({n: t for n, t in big(sharded.mean_gradients(world, step)).items() if n.startswith("blocks.1.")})
        told.append(models.caught(partial(sharded.loss_of, model, rank, 9)))
        model.reset_iter_state()
    return told, sharded.gap(means, hook, due), hook.step


@pytest.mark.parametrize("where", ["middle", "first"])
def test_a_pass_that_raises(two: Workers, where: str) -> None:
    for (raised, *state, forward), off, steps in two.run(raising, where=where):
        assert raised[:2] == ("ArithmeticError", "made to fail")
        assert forward[0] == "RuntimeError" and "reset_iter_state()" in forward[1]
        assert all(kind == "StateError" and "reset_iter_state()" in text for kind, text, _ in state)
        assert off < 1e-6 and steps == (4 if where == "middle" else 3)


def freezing(rank: int, world: int) -> Any:
    """A block is frozen at attach, and parameters come and go."""
    model, plain = sharded.net(), sharded.net()

    def train(frozen: str) -> None:
        for m in (model, plain):
            for n, p in m.named_parameters():
                p.requires_grad_(frozen not in n)

    train("blocks.0")
    model = sharded.shard(model)
    hook = sharded.attach(model, EF4)
    means, due, dense = list[Any](), list[Any](), list[int]()
    for step, frozen in enumerate(("blocks.0", "nothing", "up", "blocks.1", "nothing")):
        train(frozen)
        sharded.loss_of(model, rank, step).backward()
        means.append(sharded.grads(model))
        due.append(sharded.mean_gradients(world, step, plain))
        dense.append(hook.dense_bytes)
    state = hook.state_dict()
    hook.load_state_dict(state)
    return hook.step, sharded.gap(means, hook, due), dense, sorted(hook.report().elements)


def test_parameters_are_frozen_and_unfrozen(two: Workers) -> None:
    for steps, off, dense, names in two.run(freezing):
        assert steps == 5 and off < 1e-6
        assert dense[0] == dense[3] < dense[1] == dense[4] > dense[2]
        assert names == sorted(n for n, _ in sharded.net().named_parameters())


class Part(Net):
    """Two parameters of a unit have no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x)
        for block in self.blocks:
            y = block(y)
        return self.head(y)


def unused(rank: int, world: int) -> Any:
    """Without a gradient on all ranks, and on one."""
    model = sharded.shard(alike(Part))
    sharded.attach(model, EF4)
    told = models.caught(sharded.loss_of(model, rank, 0).backward)
    again = models.caught(lambda: model(sharded.given(rank, 0)[0]))
    one = sharded.shard(alike(Part if rank == 1 else Net))
    sharded.attach(one, EF4)
    differs = models.caught(sharded.loss_of(one, rank, 0).backward)
    other = sharded.shard(alike(Part))
    hook = sharded.attach(other, EF4)
    other.set_reduce_scatter_unused_params(True)
    sharded.loss_of(other, rank, 1).backward()
    found = sharded.grads(other)
    return told, again, differs, hook.step, bool(found["few.weight"].any()), bool(found["head.weight"].any())


def test_a_parameter_without_a_gradient(two: Workers) -> None:
    for rank, (told, again, differs, steps, few, head) in enumerate(two.run(unused)):
        assert told[0] == "RuntimeError" and "set_reduce_scatter_unused_params(True)" in told[1]
        assert "few.weight" in told[1] or "words.weight" in told[1]
        assert "broke in step 0" in again[1]
        assert differs[0] == ("RuntimeError" if rank == 1 else "PeerError"), differs
        assert steps == 1 and not few and head


def made_later(rank: int, world: int) -> Any:
    """Built on the meta device, before and after attach; with a parameter that FSDP ignores; compiled; clipped."""
    told, hook = list[Any](), None
    for when in ("before", "after", "assigned"):
        with torch.device("meta"):
            model = sharded.shard(Net())
        if when == "after":
            hook = sharded.attach(model, "Exact()")
        if when == "assigned":
            model.load_state_dict(sharded.shard(sharded.net()).state_dict(), assign=True)
        else:
            model.to_empty(device="cpu")
        if when != "after":
            hook = sharded.attach(model, "Exact()")
        torch.manual_seed(1)
        for p in model.parameters():
            torch.nn.init.constant_(p, 0.1)
        losses, _ = sharded.train(model, rank, range(2))
        assert hook is not None
        told.append((hook.step, all(loss == loss for loss in losses)))
    norms: list[Any] = []
    for reducer in (None, "Exact()"):
        model = sharded.shard(sharded.net())
        hook = sharded.attach(model, reducer) if reducer else None
        made: Any = torch.compile(model, backend="aot_eager")
        sharded.loss_of(made, rank, 0).backward()
        norm: Any = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        norms.append((norm.full_tensor(), sharded.grads(model)))
    told.append(bool(norms[0][0] == norms[1][0]) and sharded.same(norms[0][1], norms[1][1]))
    assert hook is not None
    return told, hook.step


def test_models_that_are_made_or_compiled_later(two: Workers) -> None:
    for told, steps in two.run(made_later):
        assert told == [(2, True)] * 3 + [True] and steps == 1
