"""Sharded inside a node, averaged between nodes by a reducer: four real ranks as two nodes of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import compcomm as cc

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi


class Net(nn.Module):
    """Uneven matrices, norms, and a parameter of one row, of which the second shard has nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(23, 37)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(37), nn.Linear(37, 37), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(37, 23)
        self.scale = nn.Parameter(torch.ones(1, 23))

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        for block in self.blocks:
            y = y + block(y)
        return self.head(y) * self.scale


def sharded(native: bool = False, nodes: int = 2) -> Any:
    torch.manual_seed(0)
    shards = dist.get_world_size() // nodes
    mesh = init_device_mesh("cpu", (nodes, shards), mesh_dim_names=("replicate", "shard"))
    model = Net()
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh if native else mesh["shard"])
    return model


def train(model: Any, steps: int, hook: Any = None, first: int = 0, held: int = 1, optimizer: Any = None) -> Any:
    """Trains on batches that are a function of (rank, step); the optimizer."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(first, first + steps):
        for part in range(held):
            if hook is not None:
                hook.hold = part + 1 < held
            x = batch(step * held + part)
            (nn.functional.cross_entropy(model(x).flatten(0, 1), (3 * x + 1).flatten() % 23) / held).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def batch(step: int) -> Tensor:
    drawn = torch.Generator().manual_seed(1000 * step + dist.get_rank())
    return torch.randint(0, 23, (4, 6), generator=drawn)


def weights(model: Any) -> Tensor:
    return torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()])


def exact(rank: int, world: int, steps: int, held: int = 1) -> Any:
    native, ours = sharded(native=True), sharded()
    hook: Any = cc.attach(ours, cc.Exact(), between="replicate")
    optimizer = torch.optim.AdamW(native.parameters(), lr=3e-3)
    for step in range(steps):
        for part in range(held):
            native.set_requires_all_reduce(part + 1 == held)
            x = batch(step * held + part)
            (nn.functional.cross_entropy(native(x).flatten(0, 1), (3 * x + 1).flatten() % 23) / held).backward()
        torch.nn.utils.clip_grad_norm_(native.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    train(ours, steps, hook, held=held)
    return weights(native), weights(ours), hook.step


@pytest.mark.parametrize("held", [1, 3])
def test_exact_is_native_hsdp(four: Workers, held: int) -> None:
    """Also where shards' gradients add up in several passes, of which the last alone goes between nodes."""
    found = four.run(exact, steps=6, held=held)
    for native, ours, steps in found:
        assert steps == 6
        torch.testing.assert_close(ours, native, rtol=1e-6, atol=1e-6)
        assert torch.equal(ours, found[0][1]), "replicas differ"


def named_otherwise(rank: int, world: int) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    found: list[Tensor] = []
    for between in ("replicate", "nodes", mesh["replicate"], mesh.get_group("replicate")):
        model = sharded()
        hook: Any = cc.attach(model, cc.ErrorFeedback(cc.QSGD(bits=4)), between=between)
        train(model, 3)
        assert hook.transport.world == 2 and hook.transport.rank == rank // 2
        found.append(weights(model))
    return found


def test_nodes_are_the_groups_that_share_a_model(four: Workers) -> None:
    for found in four.run(named_otherwise):
        assert all(torch.equal(one, found[0]) for one in found)


def conserves(rank: int, world: int, reducer: str) -> Any:
    """What was applied and what is remembered, summed over the steps, beside the mean of the gradients."""
    model = sharded()
    hook: Any = cc.attach(model, cc.parse(reducer), between="replicate")
    due: dict[str, Tensor] = {}
    applied: dict[str, Tensor] = {}
    for step in range(6):
        plain = Net()
        plain.load_state_dict({n: p.full_tensor() for n, p in model.state_dict().items()})
        x = batch(step)
        for net in (plain, model):
            nn.functional.cross_entropy(net(x).flatten(0, 1), (3 * x + 1).flatten() % 23).backward()
        for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
            assert p.grad is not None
            dist.all_reduce(p.grad)
            due[name] = due.get(name, 0) + p.grad.double() / world
            applied[name] = applied.get(name, 0) + q.grad.full_tensor().double()
            q.grad = None
    held = hook.portable_state_dict()["slots"]["residual"]
    gap = max(float((due[n] - applied[n] - held.get(n, torch.zeros(())).double()).norm() / due[n].norm()) for n in due)
    report = hook.report()
    coded = sum(p.numel() for n, p in model.named_parameters() if n in held)
    return gap, hook.step, report.state_bytes, coded, str(report)


UNLIKE = "PowerSGD(2, min_ratio=4.4)"
"""Of 23 rows the first shard's 12 are worth factors, and the second's 11 are not: they travel exact."""


@pytest.mark.parametrize(
    "reducer", ["ErrorFeedback(QSGD(bits=4, rounding='nearest'))", "PowerSGD(2, min_ratio=1)", UNLIKE]
)
def test_nothing_is_lost_between_nodes(four: Workers, reducer: str) -> None:
    for gap, steps, state, coded, _ in four.run(conserves, reducer=reducer):
        assert gap < 2e-6 and steps == 6
        assert state <= 0.75 * 4 * coded, "memory is that of a shard"


def saves(rank: int, world: int, folder: str) -> Any:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    reducer = cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest"))
    model = sharded()
    hook: Any = cc.attach(model, reducer, between="replicate")
    optimizer = train(model, 3)
    held = hook.portable_state_dict()
    state, moments = get_state_dict(model, optimizer)
    dcp.save({"model": state, "optimizer": moments, "memory": hook.state_dict()}, checkpoint_id=folder)
    train(model, 2, first=3, optimizer=optimizer)
    due = weights(model)

    again = sharded()
    second: Any = cc.attach(again, reducer, between="replicate")
    optimizer = torch.optim.AdamW(again.parameters(), lr=3e-3)
    state, moments = get_state_dict(again, optimizer)
    loaded = {"model": state, "optimizer": moments, "memory": second.state_dict()}
    dcp.load(loaded, checkpoint_id=folder)
    set_state_dict(again, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    second.load_state_dict(loaded["memory"])
    train(again, 2, first=3, optimizer=optimizer)

    for native, nodes in ((True, 2), (False, 1)):  # native HSDP, and fully sharded over four
        other = sharded(native=native, nodes=nodes)
        state = {"model": other.state_dict()}
        dcp.load(state, checkpoint_id=folder)
    return torch.equal(due, weights(again)), held, second.step


def moves(rank: int, world: int, nodes: int, held: Any) -> Any:
    """The same memory with other numbers of nodes and shards."""
    hook: Any = cc.attach(
        sharded(nodes=nodes), cc.ErrorFeedback(cc.QSGD(bits=4, rounding="nearest")), between="replicate"
    )
    hook.load_portable_state_dict(held)
    return hook.portable_state_dict(), hook.step


def test_checkpoints_resume_and_move(four: Workers, two: Workers, tmp_path: Path) -> None:
    results = four.run(saves, folder=str(tmp_path / "saved"))
    assert all(same and step == 5 for same, _, step in results)
    held = results[0][1]
    for workers, nodes in ((four, 4), (four, 1), (two, 2), (two, 1)):
        for found, step in workers.run(moves, nodes=nodes, held=held):
            assert step == 3
            for name, residual in held["slots"]["residual"].items():
                torch.testing.assert_close(found["slots"]["residual"][name], residual, rtol=1e-6, atol=1e-7)


def refused(rank: int, world: int) -> Any:
    reducer = cc.ErrorFeedback(cc.QSGD(bits=4))
    model = sharded()
    told = {
        "two dimensions": models.caught(lambda: cc.attach(sharded(native=True), reducer, between="replicate")),
        "no such dimension": models.caught(lambda: cc.attach(model, reducer, between="nodes of mine")),
        "its own dimension": models.caught(lambda: cc.attach(model, reducer, between="shard")),
        "no group": models.caught(lambda: cc.attach(model, reducer, between=3)),  # type: ignore[arg-type]
        "everybody": models.caught(lambda: cc.attach(model, reducer, between=dist.group.WORLD)),
        "one model": models.caught(lambda: cc.attach(sharded(nodes=1), reducer, between="nodes")),
        "inside": models.caught(lambda: cc.attach(model, reducer, between="nodes", inside=cc.QSGD(bits=8))),
        "weights": models.caught(
            lambda: cc.attach(model, reducer, between="replicate", weights=cc.QSGD(bits=8, rounding="nearest"))
        ),
        "ranks differ": models.caught(
            lambda: cc.attach(model, cc.TopK(0.1) if rank == 3 else reducer, between="replicate")
        ),
    }
    hook: Any = cc.attach(model, reducer, between="replicate")
    told["twice"] = models.caught(lambda: cc.attach(model, reducer, between="replicate"))
    told["hold"] = models.caught(lambda: setattr(hook, "hold", 1))
    train(model, 1)
    hook.detach()
    train(model, 1, first=1)
    return told


def test_what_does_not_fit_is_said_on_every_rank(four: Workers) -> None:
    words = {
        "two dimensions": "mesh=mesh\\['shard'\\]",
        "no such dimension": "The others are 'replicate'",
        "its own dimension": "The others are 'replicate'",
        "no group": "give the name of a dimension",
        "everybody": "one of each node",
        "one model": "all ranks share one model.*Shard inside nodes",
        "inside": "reduce_dtype",
        "weights": "gathered inside a node",
        "ranks differ": "reducer",
        "twice": "a compcomm reducer",
        "hold": "True or False",
    }
    for told in four.run(refused):
        for what, pattern in words.items():
            models.said(told[what], pattern)
