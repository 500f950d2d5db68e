"""``cc.mesh``: FSDP2 on a native mesh whose replicate dimension compresses, on four real processes as 2 x 2."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

import compcomm as cc
from tests.refusals import refused

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi

WIDTH = 65  # odd: the shards are uneven, and padded
FEEDBACK = "ErrorFeedback(QSGD(bits=4, rounding='nearest'))"


class Net(nn.Module):
    """Three units and a root; the middle one can raise in its backward pass, or lie within a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 20)
        self.raises = self.recomputes = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            again: Any = checkpoint(block, x, use_reentrant=True) if self.recomputes else block(x)
            x = again.tanh()
            if self.raises and block is self.blocks[0]:
                x.register_hook(_raise)
        return self.head(self.norm(x))


def _raise(gradient: Tensor) -> None:
    raise ArithmeticError("in the middle of the pass")


def grid() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


def sharded(mesh: DeviceMesh, **options: Any) -> Any:
    net = Net()
    for block in net.blocks:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(net, mesh=mesh, **options)


def group_of(mesh: DeviceMesh) -> Any:
    return mesh.get_group("replicate")


def train(model: Any, rank: int, steps: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """SGD with clipped gradients; this rank's parameters, and the last norm."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    norm = torch.zeros(())
    for x in models.batches(rank, steps, WIDTH, start):
        optimizer.zero_grad()
        (model(x) - 1).pow(2).mean().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    whole: Any = norm
    return torch.cat([p.to_local().detach().reshape(-1) for p in model.parameters()]), whole.full_tensor()


def loss(model: Any, rank: int) -> float:
    """Over all ranks' batches, the same on each of them."""
    with torch.no_grad():
        found = torch.stack([(model(x) - 1).pow(2).mean() for x in models.batches(rank, 4, WIDTH, 50)]).mean()
    dist.all_reduce(found)
    return float(found) / dist.get_world_size()


def beside_native(rank: int, world: int, reducer: str, bound: bool, dtype: torch.dtype | None = None) -> Any:
    policy = MixedPrecisionPolicy(reduce_dtype=dtype)
    native = sharded(grid(), mp_policy=policy)
    mesh = cc.mesh(grid(), "replicate", cc.parse(reducer), seed=3)
    model = sharded(mesh, mp_policy=policy)
    hook = group_of(mesh).bind(model) if bound else None
    due, due_norm = train(native, rank, 10)
    found, norm = train(model, rank, 10)
    hook = hook or group_of(mesh).attachment
    losses = loss(native, rank), loss(model, rank)
    return due, found, (float(due_norm), float(norm)), losses, hook.step, hook.report().bytes_sent


def alike(results: Any) -> None:
    """Replicas have equal bits, and every backward pass was one step."""
    for a, b in ((0, 2), (1, 3)):
        assert torch.equal(results[a][1], results[b][1])
    assert [r[4] for r in results] == [10] * 4


@pytest.mark.parametrize(("dtype", "error"), [(None, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_exact_equals_native_hsdp(four: Workers, dtype: torch.dtype | None, error: float) -> None:
    results = four.run(beside_native, reducer="Exact()", bound=dtype is None, dtype=dtype)
    alike(results)
    for due, found, norms, _, _, _ in results:
        torch.testing.assert_close(found, due, rtol=0, atol=error)
        assert norms[1] == pytest.approx(norms[0], abs=10 * error)


@pytest.mark.parametrize("bound", [True, False])
def test_feedback_trains_with_fewer_bytes(four: Workers, bound: bool) -> None:
    results = four.run(beside_native, reducer=FEEDBACK, bound=bound)
    exact = four.run(beside_native, reducer="Exact()", bound=bound)
    alike(results)
    for (due, found, _, losses, _, sent), (*_, dense) in zip(results, exact, strict=True):
        assert not torch.equal(found, due) and losses[1] == pytest.approx(losses[0], rel=0.02)
        assert sent < dense * 0.3


def watched(rank: int, world: int) -> Any:
    """What one weight's shard gave, got and kept."""
    mesh = cc.mesh(grid(), "replicate", cc.parse(FEEDBACK))
    model, group = sharded(mesh), group_of(mesh)
    hook = group.bind(model)
    given, got = torch.zeros(()), torch.zeros(())
    average = group._steps.average
    index = next(i for i, x in enumerate(group._steps.units.layouts) if x.segments[0].name == "blocks.1.weight")
    size = group._steps.units.layouts[index].segments[0].numel

    def watch(flat: Tensor, scale: float) -> Any:
        nonlocal given, got
        before = flat.clone()
        future: Any = average(flat, scale)
        future.wait()
        if group._steps._came[-1] == index:
            given, got = given + before[:size], got + flat[:size]
        return future

    group._steps.average = watch
    train(model, rank, 5)
    (slot,) = models.slots(hook).values()
    return given, got, slot["blocks.1.weight"].float().reshape(-1)


def test_what_is_not_sent_is_kept(four: Workers) -> None:
    results = four.run(watched)
    for a, b in ((0, 2), (1, 3)):
        (given, got, kept), (given_b, _, kept_b) = results[a], results[b]
        assert kept.norm() > 0.01 * given.norm() > 0
        torch.testing.assert_close((given + given_b) / 2, got + (kept + kept_b) / 2, rtol=0, atol=1e-6)


def flat_replicas(rank: int, world: int) -> Any:
    """``replicate()`` on a mesh of one dimension, beside the mean over all ranks' batches."""
    mesh = cc.mesh(init_device_mesh("cpu", (world,), mesh_dim_names=("data",)), "data", cc.Exact())
    net, alone = Net(), Net()
    for block in net.blocks:
        replicate(block, mesh=mesh)
    model: Any = replicate(net, mesh=mesh)
    hook = mesh.get_group().bind(model)  # type: ignore[attr-defined]
    (model(models.batches(rank, 1, WIDTH)[0]) - 1).pow(2).mean().backward()
    (alone(torch.cat([models.batches(r, 1, WIDTH)[0] for r in range(world)])) - 1).pow(2).mean().backward()
    for p, due in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad.to_local(), due.grad)
    return hook.step, sorted(hook.elements) == sorted(n for n, _ in alone.named_parameters())


def test_replicate_on_one_dimension(four: Workers) -> None:
    assert four.run(flat_replicas) == [(1, True)] * 4


def resumed(rank: int, world: int) -> Any:
    def opened() -> Any:
        mesh = cc.mesh(grid(), "replicate", cc.parse(FEEDBACK), seed=5)
        model = sharded(mesh)
        return model, group_of(mesh).bind(model)

    model, hook = opened()
    train(model, rank, 3)
    state = hook.state_dict()
    kept = {name: p.to_local().detach().clone() for name, p in model.named_parameters()}
    due, _ = train(model, rank, 3, start=3)
    again, other = opened()
    for name, p in again.named_parameters():
        p.to_local().detach().copy_(kept[name])
    other.load_state_dict(state)
    found, _ = train(again, rank, 3, start=3)
    return torch.equal(due, found), hook.step == other.step == 6


def test_resumes_bit_for_bit(four: Workers) -> None:
    assert four.run(resumed) == [(True, True)] * 4


class Sums(torch.autograd.Function):
    """A backward pass with an all-reduce of its own."""

    totals: ClassVar[list[float]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        total = gradients[0].detach().sum().view(1)
        work: Any = dist.all_reduce(total, group=ctx.group, async_op=True)
        work.wait()
        Sums.totals.append(float(total))
        return gradients[0], None


def all_else(rank: int, world: int) -> Any:
    """Sums that are no gradients, in and outside a backward pass, and other collectives: torch's own."""
    mesh = cc.mesh(grid(), "replicate", cc.parse(FEEDBACK))
    group, model = group_of(mesh), sharded(mesh)
    hook = group.bind(model)
    here = torch.linspace(0, 1, 5000) * (rank + 1)
    told = [here.clone() for _ in range(4)]
    unbound = group_of(cc.mesh(grid(), "replicate", cc.parse(FEEDBACK)))
    dist.all_reduce(told[0], group=unbound)
    dist.all_reduce(told[3], group=group)
    dist.all_reduce(told[1], dist.ReduceOp.MAX, group=group)
    dist.broadcast(told[2], group=group, group_src=1)
    peers = [rank % 2 + 1.0, rank % 2 + 3.0]
    expected = [sum(torch.linspace(0, 1, 5000) * p for p in peers), *[torch.linspace(0, 1, 5000) * peers[1]] * 2]
    expected.append(expected[0])
    objects: list[Any] = [None, None]
    dist.all_gather_object(objects, rank, group=group)
    steps = [hook.step]
    summing: Any = Sums.apply
    Sums.totals.clear()
    x = models.batches(rank, 1, WIDTH)[0].requires_grad_()
    summing(model(summing(x, group)), group).sum().backward()
    other, native = sharded(mesh), sharded(grid())  # a second model on the mesh, alike to the first in all sizes
    for twin in (other, native):
        twin(models.batches(rank, 1, WIDTH)[0]).pow(2).mean().backward()
    pairs = zip(other.parameters(), native.parameters(), strict=True)
    alike = [torch.equal(p.grad.to_local(), q.grad.to_local()) for p, q in pairs]
    means = [torch.equal(a, b) for a, b in zip(told, expected, strict=True)]  # pyright: ignore[reportArgumentType]
    return means, objects, [*steps, hook.step], all(alike), Sums.totals.pop(0)


def test_all_else_is_torchs_own(four: Workers) -> None:
    for rank, found in enumerate(four.run(all_else)):
        assert found == ([True] * 4, [rank % 2, rank % 2 + 2], [0, 1], True, 2 * 8 * 20)


def several_roots(rank: int, world: int) -> Any:
    """The outermost module's forward pass is never called, so each unit is one FSDP2 believes to be outermost."""
    cube = init_device_mesh("cpu", (1, 2, 2), mesh_dim_names=("stage", "replicate", "shard"))
    mesh = cc.mesh(cube, "replicate", cc.parse(FEEDBACK))["replicate", "shard"]
    model = sharded(mesh)
    hook = group_of(mesh).bind(model)
    for x in models.batches(rank, 3, WIDTH):
        for block in model.blocks:
            x = block(x).tanh()
        x.sum().backward()
    return hook.step, hook.report().bytes_sent > 0


def test_a_pass_is_one_step_with_several_roots(four: Workers) -> None:
    assert four.run(several_roots) == [(3, True)] * 4


def after_an_error(rank: int, world: int) -> Any:
    mesh = cc.mesh(grid(), "replicate", cc.parse(FEEDBACK))
    model = sharded(mesh)
    hook = group_of(mesh).bind(model)
    passes = functools.partial(train, model, rank, 1)
    passes()
    model.raises = True
    first = models.caught(passes)
    model.raises = False
    told = models.caught(passes)
    model.reset_iter_state()
    passes()
    return first[0], told[0], "reset_iter_state()" in told[1], hook.step


def test_a_pass_that_raised_is_given_up(four: Workers) -> None:
    assert four.run(after_an_error) == [("ArithmeticError", "StateError", True, 3)] * 4


def mistakes(rank: int, world: int) -> Any:
    mesh = grid()
    make = functools.partial(cc.mesh, mesh)
    made = make("replicate", cc.Exact())
    model, group = sharded(made), group_of(made)
    told = [
        models.caught(lambda: make("replica", cc.Exact())),
        models.caught(lambda: make("replicate", "TopK")),  # type: ignore[arg-type]
        models.caught(lambda: make("replicate", cc.Exact() if rank < 2 else cc.PowerSGD(2))),
        models.caught(lambda: make("replicate", cc.Exact() if rank < 2 else 3)),  # type: ignore[arg-type]
        models.caught(lambda: cc.mesh(made, "replicate", cc.Exact())),
        models.caught(lambda: group.attachment),
        models.caught(lambda: group.bind(sharded(mesh))),
        models.caught(lambda: group.bind(model if rank < 2 else Net())),
    ]
    model.recomputes = True
    x = models.batches(rank, 1, WIDTH)[0].requires_grad_()
    told.append(models.caught(lambda: model(x).sum().backward()))
    model.recomputes = False
    model.reset_iter_state()
    train(model, rank, 1)
    group.attachment.passes = 2
    told.append(models.caught(lambda: train(model, rank, 1)))
    told.append(models.caught(lambda: group.bind(model)))
    told.append(models.caught(group.attachment.state_dict))
    return told


WORDS = (
    ("ValueError", "dim='replica'", "has no such dimension", "'replicate', 'shard'"),
    ("TypeError", "mesh: 'TopK' is no reducer", "cc.parse(text)"),
    ("AgreementError", "reducer: Exact() on ranks 0, 1, PowerSGD(2) on ranks 2, 3"),
    (None, "mesh", "is no reducer"),
    ("ValueError", "compressed there already", "cc.Partition"),
    ("StateError", "nothing was averaged yet", "bind(model)"),
    ("StateError", "Net has nothing that is averaged over this group", "fully_shard(model, mesh=mesh)"),
    (None, "Net has nothing that is averaged over this group"),
    ("StateError", "use_reentrant=False"),
    ("StateError", "passes = 2", "set_requires_gradient_sync(False)"),
    ("StateError", "averages already"),
    ("StateError", "no names yet", "bind(model) before the first backward pass"),
)


def test_mistakes_are_told(four: Workers) -> None:
    for told in four.run(mistakes):
        for (kind, text, _), (due, *words) in zip(told, WORDS, strict=True):
            assert due in (None, kind), (kind, text)
            assert all(word in text for word in words), (kind, text)


def test_no_mesh_at_all() -> None:
    refused(lambda: cc.mesh(3, "replicate", cc.Exact()), "mesh(int)", "DeviceMesh", "init_device_mesh")  # type: ignore[arg-type]
