"""Wrong inputs: each says the call, the value, the reason and the cure, before anything has happened."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import compcomm as cc
from compcomm.optim import OneBitAdam


def params() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3))]


def test_a_warm_up_that_never_begins() -> None:
    with pytest.raises(ValueError, match=r"OneBitAdam\(freeze=-3\): give the number of warm-up steps"):
        OneBitAdam(params(), freeze=-3)
    with pytest.raises(ValueError, match=r"amsgrad=True\): .*ends with the warm-up"):
        OneBitAdam(params(), amsgrad=True)


def test_what_is_no_parameter() -> None:
    with pytest.raises(TypeError, match=r"OneBitAdam\(Parameter\): give a model, its parameters, or a list of groups"):
        OneBitAdam(params()[0])
    with pytest.raises(ValueError, match="there are no parameters"):
        OneBitAdam([])
    with pytest.raises(TypeError, match=r"compressor='sign'\): give a compressor"):
        OneBitAdam(params(), compressor="sign")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"warmup=None\): give a reducer"):
        OneBitAdam(params(), warmup=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"OneBitAdam: the gradient of '0' is torch.complex64"):
        OneBitAdam([nn.Parameter(torch.ones(3, dtype=torch.complex64))])
    with pytest.raises(TypeError, match=r"params=\.\.\..*the first argument is no model"):
        OneBitAdam(params(), params=params())


def test_groups_are_checked_too() -> None:
    with pytest.raises(ValueError, match=r"lr=-2"):
        OneBitAdam([{"params": params(), "lr": -2}])
    own = OneBitAdam(params())
    with pytest.raises(ValueError, match=r"weight_decay=-1"):
        own.add_param_group({"params": params(), "weight_decay": -1})
    assert len(own.param_groups) == 1


def test_sparse_gradients() -> None:
    table = nn.Embedding(10, 4, sparse=True)
    with pytest.raises(TypeError, match=r"sparse gradients.*sparse=False"):
        OneBitAdam(table)
    own = OneBitAdam(table.parameters())
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"the gradient of '0' is sparse.*sparse=False"):
        own.step()


def test_the_published_scale_is_taken() -> None:
    own = OneBitAdam(params(), compressor=cc.SignScale(scale="l2"))
    assert repr(own.reducer) == "ErrorFeedback(Unproven(SignScale(scale='l2')))"


@pytest.mark.parametrize("whole", [True, False])
def test_frozen_parameters_are_left_out(whole: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    own = OneBitAdam(model if whole else model.parameters())
    assert len(own.param_groups[0]["params"]) == 2
    model(torch.ones(3)).sum().backward()
    own.step()
    model[0].requires_grad_(True)
    model(torch.ones(3)).sum().backward()
    with pytest.raises(RuntimeError, match=r"has a gradient, and had requires_grad=False.*anew after unfreezing"):
        own.step()


@pytest.mark.parametrize("options", [{"lr": "1e-3"}, {"lr": None}, {"weight_decay": "0"}, {"eps": True}])
def test_options_of_another_kind(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"a number, 0 or more. Groups over .* go to params="):
        OneBitAdam(params(), **options)


def test_ranks_without_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE=2 and no process group.*init_process_group\(\) first"):
        OneBitAdam(params())


def test_a_report_of_one_rank() -> None:
    found = OneBitAdam(params()).report()
    assert found.world == 1 and found.bytes_sent == 0.0 and "on 1 rank" in str(found)


def test_after_detach() -> None:
    own = OneBitAdam(params())
    own.detach()
    for call in (own.step, own.state_dict, own.portable_state_dict, own.report):
        with pytest.raises(RuntimeError, match=r"this optimizer is detached. Make a new one"):
            call()


def test_it_is_neither_copied_nor_pickled() -> None:
    with pytest.raises(TypeError, match=r"neither copied nor pickled. Save its state_dict\(\)"):
        copy.deepcopy(OneBitAdam(params()))


def test_two_devices() -> None:
    with pytest.raises(ValueError, match="parameters on cpu and meta"):
        OneBitAdam([*params(), nn.Parameter(torch.ones(3, device="meta"))])


def test_a_parameter_twice() -> None:
    p = params()[0]
    with pytest.raises(ValueError, match="the same parameter twice"):
        OneBitAdam([p, p])
    own = OneBitAdam(params())
    with pytest.raises(ValueError, match="more than one parameter group"):
        own.add_param_group({"params": [own.param_groups[0]["params"][0]]})
    assert len(own.param_groups) == 1 and list(own._names.values()) == ["0", "1"]


@pytest.mark.parametrize("given", [cc.PowerSGD(2), cc.EF21(cc.TopK(0.1)), cc.Warmup(3, cc.TopK(0.1))])
def test_other_feedback(given: cc.Reducer) -> None:
    with pytest.raises(TypeError, match=r"give a compressor.*a route around one.*no other feedback"):
        OneBitAdam(params(), compressor=given)


def test_a_partition_of_compressors() -> None:
    own = OneBitAdam(params(), compressor=cc.Partition({"0": cc.SignScale(), "*": cc.Exact()}))
    assert repr(own.reducer) == "Partition({'0': ErrorFeedback(SignScale()), '*': ErrorFeedback(Exact())})"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {"model": 1}, "dict is no optimizer's state"),
        (lambda s: {**torch.optim.SGD(params()).state_dict()}, "this is the state of another optimizer"),
        (lambda s: {**s, "compcomm": {"rank 1 of 4": {}}}, r"has rank 1 of 4, and this is rank 0 of 1"),
        (lambda s: {**s, "state": {0: s["state"][0]}}, "moments of 1 parameters, and there are 2 here"),
        (lambda s: {**s, "state": {**s["state"], 1: {"step": 0}}}, "'exp_avg' of parameter 1 has None"),
        (lambda s: {**s, "param_groups": s["param_groups"] * 2}, r"groups of \[2, 2\] parameters"),
    ],
)
def test_checkpoints_that_do_not_fit(change: Any, says: str) -> None:
    own = OneBitAdam(params())
    before = copy.deepcopy(own.state_dict())
    with pytest.raises(cc.StateError, match=says):
        own.load_state_dict(change(own.state_dict()))
    assert str(own.state_dict()) == str(before)


def test_a_checkpoint_of_another_configuration() -> None:
    own = OneBitAdam(params(), compressor=cc.QSGD(bits=4, rounding="nearest"))
    with pytest.raises(cc.StateError, match=r"compressor is 'ErrorFeedback\(SignScale\(\)\)' in the checkpoint"):
        own.load_state_dict(OneBitAdam(params()).state_dict())


def test_sharded_parameters() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Linear(4, 4)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(TypeError, match=r"sharded by FSDP.*DistributedDataParallel.*torch.optim.AdamW"):
            OneBitAdam(model)
        with pytest.raises(TypeError, match=r"parameter '0' is sharded \(DTensor\)"):
            OneBitAdam(model.parameters())
    finally:
        dist.destroy_process_group()
