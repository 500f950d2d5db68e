"""Collectives of one tensor, on real processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import compcomm as cc

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi


def given(rank: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rank))


def calls(rank: int, world: int) -> Any:
    """Everything that may be called, each beside torch's own."""
    eight, found = cc.QSGD(bits=8, rounding="nearest"), dict[str, Any]()
    pair = dist.new_group([0, 1])
    for name, shape, dtype in (("vector", (5000,), torch.float32), ("matrix", (40, 70), torch.bfloat16)):
        ours, theirs = (given(rank, *shape).to(dtype) for _ in range(2))
        for text in (
            "QSGD(bits=8, rounding='nearest')",
            "Exact()",
            "TwoPhase(Cast(bfloat16))",
            "AllReduce(Cast(bfloat16))",
        ):
            mine = ours.clone()
            assert cc.all_reduce(mine, cc.parse(text)) is mine
            found[f"{name} {text}"] = mine.float()
        dist.all_reduce(theirs)
        found[f"{name} due"] = theirs.float()
        found[f"{name} mean"] = cc.all_reduce(ours.clone(), cc.Exact(), op="mean").float() * world
        whole, row = given(rank, world, *shape).to(dtype), torch.empty(shape, dtype=dtype)
        cc.reduce_scatter(row, whole, cc.Cast(torch.bfloat16))
        rows = [torch.empty(shape, dtype=dtype) for _ in range(world)]
        dist.reduce_scatter(rows[rank], list(whole.float().to(dtype)))
        found[f"{name} row"], found[f"{name} row due"] = row.float(), rows[rank].float()
        every = torch.empty(world, *shape, dtype=dtype)
        cc.all_gather(every, given(rank, *shape).to(dtype), eight)
        found[f"{name} gathered"] = every.float()
    if rank < 2:
        found["pair"] = cc.all_reduce(given(rank, 9, 500), eight, pair)
    bad = given(rank, 3000)
    bad[7] = float("inf") if rank == 1 else 0.0
    found["bad"] = [cc.all_reduce(bad.clone(), eight), cc.all_gather(torch.empty(world, 3000), bad.clone(), eight)]
    return found


def test_they_are_torchs_own_within_what_is_lost(three: Workers) -> None:
    found = three.run(calls)
    for rank, one in enumerate(found):
        for name in ("vector", "matrix"):
            due, size = one[f"{name} due"], float(one[f"{name} due"].abs().max())
            for key in (k for k in one if k.startswith(f"{name} ") and ("(" in k or k.endswith("mean"))):
                assert float((one[key] - due).abs().max()) < 0.03 * size, key
                assert torch.equal(one[key], found[0][key]), f"{key} differs between the ranks"
            torch.testing.assert_close(one[f"{name} row"], one[f"{name} row due"], rtol=0.05, atol=0.05)
            for r in range(3):
                shape = one[f"{name} gathered"].shape[1:]
                torch.testing.assert_close(one[f"{name} gathered"][r], given(r, *shape), rtol=0.02, atol=0.03)
            assert torch.equal(one[f"{name} gathered"], found[0][f"{name} gathered"])
        assert all(t.isnan().all() for t in one["bad"]), "an infinity on one rank is NaN on all"
        if rank < 2:
            torch.testing.assert_close(one["pair"], given(0, 9, 500) + given(1, 9, 500), rtol=0.05, atol=0.1)


def wrong(rank: int, world: int) -> Any:
    x, c = torch.ones(4, 300), cc.QSGD(bits=8)
    other = torch.ones(3, 300)
    return [
        models.caught(lambda: cc.all_reduce([1.0], c)),  # type: ignore[arg-type]
        models.caught(lambda: cc.all_reduce(torch.ones(3, dtype=torch.int64), c)),
        models.caught(lambda: cc.all_reduce(x, cc.ErrorFeedback(c))),
        models.caught(lambda: cc.all_reduce(x, "Cast")),  # type: ignore[arg-type]
        models.caught(lambda: cc.all_reduce(x, c, op="max")),
        models.caught(lambda: cc.all_reduce(x, c, dist.new_group([1 - rank]))),  # type: ignore[arg-type]
        models.caught(lambda: cc.reduce_scatter(other, x, c)),
        models.caught(lambda: cc.reduce_scatter(x[0], x[:2], cc.PowerSGD(2))),
        models.caught(lambda: cc.all_gather(x, x, cc.Exact())),  # type: ignore[arg-type]
    ]


def test_wrong_calls_say_what_is_wrong(two: Workers) -> None:
    words = (
        "floating-point", "floating-point", "remembers", "no compressor", '"sum" or "mean"', "no process group",
        "2 times the elements", "whole matrices", "nothing is averaged",
    )  # fmt: skip
    for told in two.run(wrong):
        for one, pattern in zip(told, words, strict=True):
            models.said(one, pattern)
