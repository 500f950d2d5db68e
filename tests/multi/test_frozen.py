"""What DDP averages is settled when it is made: parameters frozen since, unfrozen since, and those it ignores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi

EF = "ErrorFeedback(TopK(ratio=0.05))"


def unfreezes(rank: int, world: int) -> Any:
    net = models.mlp()
    net[1].requires_grad_(False)
    model = DDP(net)
    cc.attach(model, cc.parse(EF), check_every=2, timeout=20)
    models.train(model, models.batches(rank, 3))
    if rank == 1:
        net[1].bias.requires_grad_(True)
    seen = models.caught(lambda: models.train(model, models.batches(rank, 3)))
    net[1].bias.requires_grad_(True)
    late = DDP(models.mlp())
    late.module.append(nn.Linear(64, 64))
    refused = [lambda: cc.attach(late, cc.Exact(), timeout=20), lambda: cc.DDPState(cc.Exact()).bind(late)]
    return seen, list(map(models.caught, refused))


def test_what_trains_in_no_bucket_is_named(two: Workers) -> None:
    for seen, refused in two.run(unfreezes):
        assert seen[0] == "DivergenceError"
        assert "check_every, step 4: parameter '1.bias' had requires_grad=False when DDP(...) was made" in seen[1]
        for call, (kind, message, _) in zip(("attach", "bind"), refused, strict=True):
            assert kind == "ValueError"
            assert message.startswith(f"{call}: parameters '4.weight', '4.bias' had")


def _frozen_since(net: nn.Sequential) -> DDP:
    model = DDP(net, bucket_cap_mb=0.02, find_unused_parameters=True)
    net[0].requires_grad_(False)
    return model


def freezes(rank: int, world: int) -> Any:
    xs = models.batches(rank, 4)
    expected = models.train(_frozen_since(models.mlp()), xs)
    found: dict[str, tuple[Tensor, list[str]]] = {}
    for how in ("attach", "bind", "bind the module", "bind late"):
        model = _frozen_since(models.mlp())
        if how == "attach":
            state: Any = cc.attach(model, cc.Exact(), check_every=1, timeout=20)
            models.train(model, xs)
        else:
            state = cc.DDPState(cc.Exact(), check_every=0 if how == "bind late" else 1, timeout=20)
            model.register_comm_hook(state, cc.ddp_hook)
            before = 2 if how == "bind late" else 0
            models.train(model, xs[:before])
            state.bind(model.module if how == "bind the module" else model)
            models.train(model, xs[before:])
            state.report()
            state = state.attachment
        found[how] = models.flat(model), sorted(n for n, _ in state.setup.parameters)
    model = _frozen_since(models.mlp())
    stepped = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    cc.attach(model, cc.DGC(cc.TopK(0.1)), optimizer=stepped, timeout=20)
    models.train(model, xs)
    return expected, found


def test_what_was_frozen_since_is_still_averaged(two: Workers) -> None:
    names = sorted(f"{i}.{n}" for i in range(4) for n in ("weight", "bias"))
    for expected, found in two.run(freezes):
        for how, (reached, named) in found.items():
            torch.testing.assert_close(reached, expected, rtol=1e-6, atol=1e-7, msg=how)
            assert named == names, how


class Parted(nn.Module):
    """A part of which each rank has its own, of its own size, and which DDP ignores."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.body, self.part = models.mlp(2), nn.Embedding(8 + rank, 64, sparse=rank == 1)
        DDP._set_params_and_buffers_to_ignore_for_model(self, ["part.weight"])

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.part(torch.arange(8))


def ignores(rank: int, world: int, bound: str) -> Any:
    model = DDP(Parted(rank))
    if bound == "attach":
        attachment: Any = cc.attach(model, cc.Exact(), check_every=1, timeout=20)
    else:
        state = cc.DDPState(cc.Exact(), check_every=1, timeout=20)
        state.bind(model.module)
        model.register_comm_hook(state, cc.ddp_hook)
    models.train(model, models.batches(rank, 3))
    if bound != "attach":
        attachment = state.attachment
    return (
        [n for n, _ in attachment.setup.parameters],
        models.flat(model.module.body),
        models.flat(model.module.part)[:9],
    )


@pytest.mark.parametrize("bound", ["attach", "bind"])
def test_what_ddp_ignores_is_each_ranks_own(two: Workers, bound: str) -> None:
    (names, body, part), (others, other_body, other_part) = two.run(ignores, bound=bound)
    assert names == others == ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]
    assert torch.equal(body, other_body)
    assert not torch.equal(part, other_part)
