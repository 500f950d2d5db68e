"""1-bit Adam between real processes, where it differs from the others: branches that some ranks do not use, a freeze
that is found, and what is told about hooks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from compcomm.optim import OneBitAdam

from . import models
from .compressed import KINDS, advance, make
from .given import Given
from .harness import Workers

pytestmark = pytest.mark.multi
KIND = "OneBitAdam"
FREEZE = KINDS[KIND].freeze


def hooked(rank: int, world: int) -> Any:
    model, _ = models.wrap(models.mlp(), cc.Exact())
    first = models.caught(lambda: OneBitAdam(model))
    other = DDP(models.mlp())
    own = OneBitAdam(other, freeze=2)
    second = models.caught(lambda: cc.attach(other, cc.Exact()))
    third = models.caught(lambda: OneBitAdam(DDP(models.mlp()), params=list(models.mlp().parameters())))
    fourth = models.caught(lambda: own.add_param_group({"params": [nn.Parameter(torch.zeros(3))]}))
    own.detach()
    return first, second, third, fourth


def test_a_hook_is_taken_once(two: Workers) -> None:
    for first, second, third, fourth in two.run(hooked):
        assert first[0] == "ValueError" and "OneBitAdam: this model has a compcomm reducer already" in first[1]
        assert second[0] == "ValueError" and "this model has the hook" in second[1]
        assert third[0] == "ValueError" and "in no group" in third[1]
        assert fourth[0] == "ValueError" and "DDP(...) has fixed what it averages" in fourth[1]


def auto(rank: int, world: int) -> Any:
    model, own = make(KIND, Given(), freeze="auto", betas=(0.9, 0.95))
    for step in itertools.count():
        advance(KIND, model, own, rank, range(step, step + 1))
        if own.frozen_at or step > 200:
            break
    advance(KIND, model, own, rank, range(300, 303))
    end = models.flat(model)
    own.detach()
    return own.frozen_at, end


def test_auto_ends_on_all_ranks_at_once(three: Workers) -> None:
    results = three.run(auto)
    assert results[0][0] is not None and len({frozen for frozen, _ in results}) == 1
    assert all(torch.equal(end, results[0][1]) for _, end in results)
