"""FullyShardedDataParallel on CPU, with its hook."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

import compcomm as cc

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi


def wrapped(strategy: ShardingStrategy) -> Any:
    policy = ModuleWrapPolicy({torch.nn.Linear})
    cpu = torch.device("cpu")  # without it, it asks for an accelerator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NO_SHARD and the CPU are not what it wants most
        return FullyShardedDataParallel(
            models.mlp(), auto_wrap_policy=policy, sharding_strategy=strategy, device_id=cpu
        )


def trained(rank: int, world: int) -> Any:
    found: dict[str, Tensor] = {}
    for strategy, texts in (
        (ShardingStrategy.FULL_SHARD, ("", "Exact()", "Cast(bfloat16)", "QSGD(bits=8)", "Rotated(LloydMax(4))")),
        (ShardingStrategy.NO_SHARD, ("", "Cast(bfloat16)")),
    ):
        for text in texts:
            model = wrapped(strategy)
            if text:
                model.register_comm_hook(cc.FSDPState(cc.parse(text)), cc.fsdp_hook)
            found[f"{strategy.name} {text}"] = models.train(model, models.batches(rank, 3))
    model = wrapped(ShardingStrategy.FULL_SHARD)
    told = [
        models.caught(lambda: cc.FSDPState(cc.ErrorFeedback(cc.TopK(0.1)))),
        models.caught(lambda: cc.attach(model, cc.TopK(0.1))),
        models.caught(lambda: cc.fsdp_hook(cc.TopK(0.1), torch.zeros(4), torch.zeros(2))),  # type: ignore[arg-type]
        models.caught(lambda: cc.fsdp_hook(cc.FSDPState(cc.Exact()), torch.zeros(9), torch.zeros(3))),
    ]
    return found, told


def test_the_hook_averages_what_fsdp_does(two: Workers) -> None:
    for found, told in two.run(trained):
        for name, weights in found.items():
            strategy, _, text = name.partition(" ")
            due, start = found[f"{strategy} "], 1e-6 if text == "Exact()" else 0.02
            assert float((weights - due).norm()) <= start * float(due.norm()), name
            assert text in ("", "Exact()") or not torch.equal(weights, due), f"{name}: nothing was coded"
        for one, words in zip(told, ("fully_shard", "FSDPState", "register_comm_hook", "process_group"), strict=True):
            models.said(one, words)
