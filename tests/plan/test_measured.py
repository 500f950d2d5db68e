"""Links that are measured, and what plans make of them: a clock that a transport of one process turns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.core.collectives import Collective, ReduceScatter
from compcomm.plan import in_run, measured_plan
from compcomm.plan import measure as measuring
from compcomm.plan.buckets import cut
from compcomm.plan.kernels import Kernels
from compcomm.plan.link import Link, Speed
from compcomm.plan.methods import HALF
from compcomm.plan.models import find
from compcomm.plan.sharded_hosts import HSDP, FullyShard
from compcomm.transports.nodes import Nodes

RATE = 1e9
SHAPES = [("w", (1024, 1024)), ("v", (512, 1024))]
NUMEL = 3 << 19


class Gloo:
    """Two ranks, as one of them sees it. Every collective takes as long as its bytes; a reduce-scatter sends twice what
    a ring's does."""

    def __init__(self) -> None:
        self.rank, self.world, self.now = 0, 2, 0.0

    def start(self, op: Collective) -> Any:
        times = 2 if isinstance(op, ReduceScatter) else 1
        self.now += times * 8 * op.sent_bytes(self.world, self.rank) / RATE
        return SimpleNamespace(wait=lambda: None)

    def clock(self) -> float:
        return self.now


def test_a_reduce_scatter_is_measured_where_rows_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = Gloo()
    monkeypatch.setattr(measuring, "perf_counter", transport.clock)
    found = {s.kind: s.bandwidth for s in measuring.measure(transport, rows=True).speeds}  # type: ignore[arg-type]
    assert found["AllReduce"] == pytest.approx(RATE) and found["ReduceScatter"] == pytest.approx(RATE / 2)
    assert len(measuring.measure(transport).speeds) == 3, "and not where none are"  # type: ignore[arg-type]


def test_a_reduce_scatter_goes_as_it_was_measured_else_like_a_sum() -> None:
    total, part = Speed("AllReduce", 1e-3, 2e9), Speed("ReduceScatter", 2e-3, 1e9)
    assert Link(1e-3, 2e9, (total, part)).speed("ReduceScatter") == part
    assert Link(1e-3, 2e9, (total,)).speed("ReduceScatter") == total
    assert Link(1e-3, 2e9, (total, part)).speed("AllReduceMax") == total


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, bool]]:
    """Kernels take no time; which transports were measured, and whether for rows."""
    asked: list[tuple[Any, bool]] = []

    def measure(transport: Any, rows: bool = False) -> Link:
        asked.append((transport, rows))
        kinds = ("AllReduce", "AllGather", "AllToAll")
        speeds = [Speed(kind, 0.0, RATE) for kind in kinds]
        return Link(0.0, RATE, tuple([*speeds, Speed("ReduceScatter", 0.0, RATE / 2)] if rows else speeds), 2)

    def calibrate(reducer: Any, layouts: Any, world: int, transport: Any, link: Any, rows: bool = False) -> Kernels:
        shards = isinstance(transport, Nodes)
        assert world == 2 and sum(layout.numel for layout in layouts) == NUMEL // (2 if shards else 1)
        return Kernels()

    for module in (in_run, measured_plan):
        monkeypatch.setattr(module, "measure", measure)
        monkeypatch.setattr(module, "calibrate", calibrate)
    return asked


def test_steps_of_sharded_models_count_it_as_measured(told: list[tuple[Any, bool]]) -> None:
    transport: Any = Gloo()
    eight = cc.QSGD(bits=8, rounding="nearest")
    found = measured_plan.measured(find(SHAPES), (), 0.0, transport, "fsdp2", eight)
    assert isinstance(found.host, FullyShard) and told == [(transport, True)]
    rows = {row.prediction.method: row.prediction for row in found.rows}
    sent = 4 * NUMEL / 2
    assert rows["DDP"].seconds == pytest.approx(8 * (2 + 2) * sent / RATE), "two gathers, and a sum at half the rate"
    assert rows["DDP"].sent == 3 * sent, "bytes are a ring's"
    assert rows[HALF.text].seconds == pytest.approx(rows["DDP"].seconds / 2)


def test_auto_counts_it_too(told: list[tuple[Any, bool]]) -> None:
    transport: Any = Gloo()
    for rows, sent in ((True, 4 * NUMEL / 2), (False, 4 * NUMEL)):
        layouts = [layout.sharded(2) if rows else layout for layout in cut(SHAPES)]
        found = in_run.propose(transport, layouts, 0.0, [cc.Cast(torch.bfloat16)], rows=rows, waits=True)
        assert found.predictions[0].sent == sent, "half of an all-reduce"
        assert found.predictions[0].seconds == pytest.approx(8 * 4 * NUMEL / RATE), "and as long"
    assert told == [(transport, True), (transport, False)]


def test_shards_between_nodes_are_measured_on_both_links(told: list[tuple[Any, bool]]) -> None:
    between, inside = Gloo(), Gloo()
    transport: Any = Nodes(between, inside)  # type: ignore[arg-type]
    found = measured_plan.measured(find(SHAPES), (), 0.0, transport, "hsdp")
    assert isinstance(found.host, HSDP) and found.host.ranks_per_node == 2 and found.world == 4
    assert told == [(inside, True), (transport, False)] and found.link.bandwidth == 2 * RATE, "each measured its share"
    inside_node, all_reduce = (2 + 2) * 4 * NUMEL / 2, 2 * (4 * NUMEL / 2)
    assert found.rows[0].prediction.seconds == pytest.approx(8 * (inside_node / RATE + all_reduce / (2 * RATE)))
    with pytest.raises(ValueError, match="--host hsdp: start two nodes or more"):
        measured_plan.measured(find(SHAPES), (), 0.0, between, "hsdp")  # type: ignore[arg-type]
