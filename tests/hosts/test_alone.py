"""A hook in a process of its own: copies of its model, and a process group that is gone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim.swa_utils import AveragedModel

import compcomm as cc


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def hooked(reducer: Any) -> tuple[Any, Any]:
    model = DDP(nn.Linear(4, 4))
    return model, cc.attach(model, reducer)


def back(model: Any) -> None:
    model.zero_grad()
    model(torch.ones(2, 4)).sum().backward()


@pytest.mark.parametrize("reducer", [cc.ErrorFeedback(cc.TopK(ratio=0.05)), cc.Auto()], ids=repr)
def test_a_model_with_a_hook_is_copied_as_one_without(reducer: Any) -> None:
    model, hook = hooked(reducer)
    back(model)
    average = AveragedModel(model)
    average.update_parameters(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.module.weight += 1.0
    back(twin)
    ((_, state),) = twin._comm_hooks
    assert state.attachment is None
    assert repr(state.options.reducer) == repr(hook.setup.options.reducer)
    assert hook.step == 1, "the copy is averaged by DDP itself, as the copy of any hooked model"
    back(model)
    assert hook.step == 2
    hook.detach()


def test_a_model_with_an_optimizers_hook_is_copied() -> None:
    model = DDP(nn.Linear(4, 4))
    optimizer = cc.optim.OneBitAdam(model, lr=0.1)
    back(copy.deepcopy(model))
    optimizer.detach()


@pytest.mark.parametrize("again", [False, True])
def test_a_step_after_the_group_was_destroyed(again: bool) -> None:
    model, hook = hooked(cc.ErrorFeedback(cc.TopK(ratio=0.05)))
    back(model)
    dist.destroy_process_group()
    if again:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with pytest.raises(RuntimeError, match="its process group was destroyed"):
        back(model)
    hook.detach()


def test_a_pass_after_its_own_group_was_destroyed() -> None:
    part = dist.new_group([0])
    model = DDP(nn.Linear(4, 4), process_group=part)
    hook = cc.attach(model, cc.ErrorFeedback(cc.TopK(ratio=0.05)))
    back(model)
    hook.passes = 2
    dist.destroy_process_group(part)
    with pytest.raises(RuntimeError, match="its process group was destroyed"):
        back(model)
    hook.detach()


def test_an_optimizer_takes_no_mean_that_was_taken_back() -> None:
    model, hook = hooked(cc.Exact())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    back(model)
    optimizer.step()
    back(model)
    hook.discard()
    before = model.module.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"SGD.step\(\) after hook.discard\(\)"):
        optimizer.step()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(model.module.weight, before)
    back(model)
    optimizer.step()
    assert not torch.equal(model.module.weight, before)
    hook.detach()


def test_a_shorter_step_may_be_announced_in_its_middle() -> None:
    model, hook = hooked(cc.Exact())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook.passes = 4
    back(model)
    with pytest.raises(RuntimeError, match="say how many it has"):
        optimizer.step()
    hook.passes = 2
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert hook.step == 1
    hook.detach()


def test_a_hook_of_ddp_refuses_sharded_parameters() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = nn.Sequential(nn.Linear(4, 4))
    fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match=r"parameter '0.weight' is sharded \(DTensor\), and here whole ones are needed"):
        cc.DDPState(cc.Exact()).bind(net)
