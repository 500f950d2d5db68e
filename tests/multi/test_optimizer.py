"""What attach and DDPState say to an optimizer whose momentum would come on top of DGC's; and that they train alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi

DGC = "DGC(TopK(ratio=0.05))"


def refusals(rank: int, world: int) -> Any:
    model = DDP(models.mlp())
    reducer = cc.parse(DGC)
    sgd, halves = torch.optim.SGD, list(model.parameters())
    groups = [{"params": halves[:3]}, {"params": halves[3:], "momentum": 0.9}]
    cases = {
        "none": None,
        "momentum": sgd(model.parameters(), lr=0.1, momentum=0.5),
        "group": sgd(groups, lr=0.1),
        "adam": torch.optim.Adam(model.parameters()),
        "half": sgd(halves[:3], lr=0.1),
        "no optimizer": 0.1,
    }
    found = {n: models.caught(lambda o=o: cc.attach(model, reducer, optimizer=o, timeout=20)) for n, o in cases.items()}
    only = sgd(model.parameters(), lr=0.1, momentum=0.5 if rank == 1 else 0.0)
    found["one rank"] = models.caught(lambda: cc.attach(model, reducer, optimizer=only, timeout=20))
    hooked = DDP(models.mlp())
    bad = sgd(hooked.parameters(), lr=0.1, momentum=0.7)
    hooked.register_comm_hook(cc.DDPState(reducer, optimizer=bad, timeout=20), cc.ddp_hook)
    found["hook"] = models.caught(lambda: models.train(hooked, models.batches(rank, 1)))
    return found


def test_a_second_momentum_is_refused(two: Workers) -> None:
    said = {
        "none": ("ValueError", "Pass optimizer= to attach"),
        "momentum": ("ValueError", "SGD has momentum=0.5 in parameter group 0 (with '0.weight')"),
        "group": ("ValueError", "SGD has momentum=0.9 in parameter group 1 (with '1.bias')"),
        "adam": ("ValueError", "Adam has betas[0]=0.9 in parameter group 0"),
        "half": ("ValueError", "optimizer= does not step '1.bias'"),
        "no optimizer": ("TypeError", "optimizer=0.1 has no param_groups"),
        "hook": ("ValueError", "SGD has momentum=0.7 in parameter group 0 (with 'parameter 0')"),
    }
    for rank, found in enumerate(two.run(refusals)):
        for case, (kind, text) in said.items():
            assert found[case][0] == kind, (case, found[case])
            assert text in found[case][1], (case, found[case])
        kind, text, _ = found["one rank"]
        assert kind == ("ValueError" if rank else "AgreementError")
        assert "SGD has momentum=0.5" in text


def trains(rank: int, world: int, dense: bool) -> Any:
    """Momentum SGD with plain averages, and DGC that sends everything: the same path, up to rounding."""
    xs = models.batches(rank, 6)
    model = DDP(models.mlp(), bucket_cap_mb=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9 if dense else 0.0)
    reducer = "Exact()" if dense else "DGC(TopK(ratio=1.0), masking=False)"
    cc.attach(model, cc.parse(reducer), optimizer=optimizer, timeout=20)
    for x in xs:
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()
        optimizer.step()
    return models.flat(model)


def test_dense_it_is_momentum_sgd(two: Workers) -> None:
    due, other = two.run(trains, dense=True)
    found, again = two.run(trains, dense=False)
    assert torch.equal(due, other) and torch.equal(found, again)
    torch.testing.assert_close(found, due, rtol=1e-4, atol=1e-6)


def attaches(rank: int, world: int) -> Any:
    model = DDP(models.mlp())
    halves = list(model.parameters())
    several = tuple(torch.optim.SGD(part, lr=0.1) for part in (halves[:3], halves[3:]))
    attachment = cc.attach(model, cc.parse(f"Warmup(1, {DGC})"), optimizer=several, timeout=20)
    models.train(model, models.batches(rank, 3))
    error = attachment.report().relative_error
    return repr(attachment.reducer), sorted(models.slots(attachment)), error["0.weight"], error["0.bias"]


def test_several_optimizers(two: Workers) -> None:
    for reducer, slots, coded, exact in two.run(attaches):
        assert reducer == "Warmup(1, reducer=DGC(AllGather(TopK(ratio=0.05))))"
        assert slots == ["momentum", "threshold", "velocity"]
        assert 0 < coded < 1 and exact is None
