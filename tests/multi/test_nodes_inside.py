"""Two levels: what travels inside a node, and how ranks say which of them share one."""

from __future__ import annotations

import os
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import compcomm as cc
from compcomm.hosts.nodes import _node
from tests.patience import patience

from . import models
from .harness import Workers
from .on_hosts import nodes_of
from .test_nodes import EF4

pytestmark = pytest.mark.multi

INSIDE = ("QSGD(bits=8, rounding='nearest')", "QSGD(bits=8)", "Cast(bfloat16)")


def coded(rank: int, world: int) -> Any:
    inputs, found = models.batches(rank, 5), dict[str, Any]()
    plain, _ = models.wrap(models.mlp())
    found["plain"] = models.train(plain, inputs)
    for text in INSIDE:
        with nodes_of(2, 2), redirect_stderr(StringIO()) as said:
            model, hook = models.wrap(
                models.mlp(), cc.parse(EF4), between="nodes", inside=cc.parse(text), timeout=patience(20)
            )
        found[text] = models.train(model, inputs), hook.report().bytes_sent, said.getvalue()
    return found


def test_gradients_are_coded_inside(four: Workers) -> None:
    results = four.run(coded)
    for found in results:
        for text in INSIDE:
            weights, sent, said = found[text]
            assert torch.equal(weights, results[0][text][0]), f"{text}: ranks differ"
            assert float((weights - found["plain"]).norm() / found["plain"].norm()) < 0.01
            assert sent == found[INSIDE[0]][1], "what is coded inside is no matter between nodes"
            assert not said or f"inside a node by {cc.parse(text)!r}" in said
    assert results[0][INSIDE[0]][2], "rank 0 says it"


def conserved(rank: int, world: int) -> Any:
    """Draws inside and between nodes are unlike each other: the mean of many means has no bias."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 32, bias=False)
    with nodes_of(2, 2):
        ddp, _ = models.wrap(model, cc.QSGD(bits=4, block=64), between="nodes", inside=cc.QSGD(bits=4, block=64))
    x, total, due = models.batches(rank, 1)[0], 0, None
    for _ in range(100):
        ddp(x).square().mean().backward()
        total = total + models.grads(ddp)
        ddp.zero_grad()
    plain = torch.nn.Linear(64, 32, bias=False)
    plain.load_state_dict(model.state_dict())
    plain(x).square().mean().backward()
    due = models.grads(plain)
    dist.all_reduce(due)
    return float((total / 100 - due / world).norm() / (due / world).norm())


def test_random_rounding_on_both_levels_has_no_bias(four: Workers) -> None:
    assert max(four.run(conserved)) < 0.03


def meshes(rank: int, world: int) -> Any:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("between", "inside"))
    inputs, told = models.batches(rank, 3), dict[str, Any]()
    model, hook = models.wrap(models.mlp(), cc.Exact(), between=mesh["between"])
    plain, _ = models.wrap(models.mlp())
    told["trains"] = models.train(model, inputs), models.train(plain, inputs), hook.transport.rank
    wrong: dict[str, dict[str, Any]] = {
        "mesh": {"between": mesh},
        "sparse": {"between": "nodes", "inside": cc.TopK(0.1)},
        "linear": {"between": "nodes", "inside": cc.RandK(0.1)},
        "variable": {"between": "nodes", "inside": cc.QSGD(bits=4, coding="elias")},
        "reducer": {"between": "nodes", "inside": cc.Exact()},
        "flat": {"inside": cc.Cast(torch.bfloat16)},
        "differ": {"between": "nodes", "inside": cc.Cast(torch.bfloat16) if rank else None},
    }
    for case, options in wrong.items():
        with nodes_of(2, 2):
            told[case] = models.caught(lambda o=options: models.wrap(models.mlp(), cc.Exact(), **o))
    return told


def test_a_dimension_of_a_mesh_says_which_ranks(four: Workers) -> None:
    for rank, told in enumerate(four.run(meshes)):
        ours, plain, node = told["trains"]
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
        assert node == rank // 2
        models.said(told["mesh"], r"2 dimensions.*mesh\['between'\]")
        models.said(told["sparse"], "part of the elements")
        models.said(told["linear"], "part of the elements")
        models.said(told["variable"], "fixed length")
        models.said(told["reducer"], "give a compressor")
        models.said(told["flat"], "between='nodes'")
        models.said(told["differ"], "inside: ")


def test_what_a_launcher_says_of_nodes() -> None:
    def local(rank: int, local: int, size: int) -> str:
        return _node({"RANK": str(rank), "LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": str(size)})

    assert _node({"GROUP_RANK": "1", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}) == "group 1"
    assert local(4, 0, 4) == local(7, 3, 4) != local(3, 3, 4)
    host = f"host {os.uname().nodename}"
    assert local(5, 0, 4) == host, "ranks that are not in a row"
    assert _node({}) == _node({"LOCAL_WORLD_SIZE": "0", "RANK": "0", "LOCAL_RANK": "0"}) == host
    # Nodes of unlike sizes do not run into each other, whatever their numbers.
    assert len({local(2, 0, 2), local(4, 0, 4)}) == 2
