"""What an attachment offers beside its means, on every host with levels: exact steps in between, a scaler, comparing
replicas, the recorder, controllers, and the line it begins with; four ranks, which are two nodes."""

from __future__ import annotations

import json
import re
from contextlib import redirect_stderr
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import compcomm as cc
from tests.patience import patience

from . import models
from .harness import Workers
from .on_hosts import SHAPES, UNITS, Hosted, Named, Net, gradients, host, joined, mean_gradients, sharded
from .test_mesh import grid

pytestmark = pytest.mark.multi

NODES = "DDP between nodes"
EF4 = "ErrorFeedback(QSGD(bits=4, rounding='nearest', block=16, dense_below=1))"
LGRECO = "LGreCo(ErrorFeedback(TopK(ratio=0.1, dense_below=1)), every=2)"
WEIGHTS = cc.QSGD(bits=8, rounding="nearest", block=16, dense_below=1)


class OnMesh(Hosted):
    """The model on a mesh that compresses, bound."""

    def __init__(self, reducer: str, **options: Any) -> None:
        self.mesh = cc.mesh(grid(), "replicate", cc.parse(reducer), seed=5, timeout=patience(20))
        self.model = sharded(Net(), mesh=self.mesh)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.applied: Named = {}
        self.hook: Any = self.mesh.get_group("replicate").bind(self.model)  # type: ignore[attr-defined]


def on(name: str, reducer: str, whole: bool = False, **options: Any) -> Hosted:
    return OnMesh(reducer) if name == "mesh" else host(name, whole, **options)(reducer)


def memory(hook: Any) -> list[Tensor]:
    slot: Named = hook.setup.store.state_dict()["residual"]
    return [slot[n].clone() for n in sorted(slot)]


def recorded(rank: int, world: int, name: str, folder: str) -> Any:
    """Five steps, the third of them exact, with a recorder."""
    on_host, found = on(name, EF4), list[Any]()
    with cc.report.Recorder(folder, on_host.hook, tensorboard=False) as recorder:
        for step in range(5):
            on_host.hook.enabled = step != 2
            before = memory(on_host.hook) if step else []
            means, _ = on_host.step(step), recorder.step(loss=float(step))
            found.append((means, step > 0 and all(map(torch.equal, before, memory(on_host.hook)))))
    report = on_host.hook.report()
    return found, (report.steps, report.bytes_sent, report.exposed_seconds), on_host.hook.counters().bytes_sent


@pytest.mark.parametrize("name", [NODES, "FSDP2", "HSDP", "mesh"])
def test_exact_steps_in_between_and_the_recorder(four: Workers, name: str, tmp_path: Path) -> None:
    results = four.run(recorded, name=name, folder=str(tmp_path))
    for step in range(5):
        due = mean_gradients(4, step)
        found = joined("HSDP" if name == "mesh" else name, [r[0][step][0] for r in results])
        off = max(float((found[n] - due[n]).norm() / due[n].norm()) for n in due)
        assert off < 1e-5 if step == 2 else off > 1e-3, (step, off)
        assert [r[0][step][1] for r in results] == [step == 2] * 4, "an exact step leaves memory as it was"
    lines = [json.loads(text) for text in (tmp_path / "steps.jsonl").read_text().splitlines()]
    _, (steps, each, _), total = results[0]
    assert [(line["step"], line["loss"]) for line in lines] == [(i + 1, float(i)) for i in range(5)]
    assert steps == 5 and lines[-1]["bytes_sent"] == total == round(5 * each)
    sent = [b["bytes_sent"] - a["bytes_sent"] for a, b in pairwise(lines)]
    assert sent[1] > 2 * sent[2] > 0, "what is exact takes more"
    assert all(r[1][2] > 0 for r in results) or name == NODES, "fully_shard waits for every mean"


SPOILED = next(n for n in UNITS[0] if len(SHAPES[n]) > 1)


def overflowing(rank: int, world: int, name: str) -> Any:
    """Five steps under a scaler, the third with an infinity in one rank's gradients."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    on_host, told, moved = on(name, EF4, scaler=scaler), list[Any](), list[Named]()
    for step in range(5):
        given = gradients(rank, step)
        if step == 2 and rank == 1:
            given[SPOILED].view(-1)[0] = float("inf")
        before = {n: t.double().clone() for n, t in on_host.weights().items()}
        scaler.scale(on_host.model(given)).backward()  # pyright: ignore
        bad = on_host.hook.steps.current.bad
        scaler.step(on_host.sgd)
        scaler.update()
        on_host.sgd.zero_grad()
        moved.append({n: (before[n] - t.double()) / 0.1 for n, t in on_host.weights().items()})
        told.append((bad, scaler.get_scale(), all(bool(t.isfinite().all()) for t in memory(on_host.hook))))
    return told, moved, on_host.hook.portable_state_dict()["slots"]["residual"]


@pytest.mark.parametrize("name", [NODES, "FSDP2", "HSDP"])
def test_an_overflow_under_a_scaler_is_a_bad_step_on_all(four: Workers, name: str) -> None:
    results = four.run(overflowing, name=name)
    dues = [mean_gradients(4, step) for step in range(5)]
    for told, moved, residual in results:
        bad, scales, finite = zip(*told, strict=True)
        assert bad == (False, False, True, False, False) and scales == (8.0, 8.0, 4.0, 4.0, 4.0)
        assert all(finite) and not any(t.any() for t in moved[2].values())
        for n in SHAPES:
            assert all(torch.equal(one[n], first[n]) for one, first in zip(moved, results[0][1], strict=True)), n
            # What is fed back keeps the bad step's finite part; of what travels exact that step is skipped.
            due = torch.stack([dues[step][n] for step in range(5) if step != 2 or n in residual]).sum(0)
            off = due - torch.stack([one[n] for one in moved]).sum(0) - residual.get(n, torch.zeros(()))
            assert float(off.flatten()[n == SPOILED :].norm()) < 1e-6 * float(due.norm()), n
        assert SPOILED in residual


def unlike(rank: int, world: int) -> Any:
    on_host = on(NODES, EF4, check_every=1)
    _ = on_host.step(0), on_host.step(1)
    if rank == 3:
        with torch.no_grad():
            next(on_host.model.parameters()).view(-1)[0] += 1
    return models.caught(lambda: on_host.step(2)), next(iter(on_host.parameters))


def test_check_every_between_nodes(four: Workers) -> None:
    for told, name in four.run(unlike):
        assert told[0] == "DivergenceError", told
        models.said(told, rf"'{re.escape(name)}' differs between the ranks \(rank 3 from the others\)")


def choosing(rank: int, world: int, name: str) -> Any:
    on_host = on(name, LGRECO)
    return [(on_host.step(step), on_host.hook.choices())[1] for step in range(5)]


@pytest.mark.parametrize("name", ["FSDP2", "HSDP"])
def test_ranks_that_average_choose_alike(four: Workers, name: str) -> None:
    results = four.run(choosing, name=name)
    for rank, found in enumerate(results):
        assert found[-1] and len(set(found[-1].values())) > 1, "one setting for all is no choice"
        assert found == results[0 if name == "FSDP2" else rank % 2], "of HSDP, those that hold the same shard"


def announced(rank: int, world: int, name: str) -> Any:
    with redirect_stderr(StringIO()) as said:
        on_host = on(name, EF4, whole=True, **({"weights": WEIGHTS} if name == "FSDP2" else {}))
    _ = [on_host.step(step) for step in range(3)]
    report, everything = on_host.hook.report(), cc.Layout.of(SHAPES.items())
    shard, reducer = everything.sharded(2).row(2, rank % 2), cc.parse(EF4)
    if name == "HSDP":
        cost = cc.cost(reducer, shard, 2, rank // 2)
    else:
        cost = cc.cost(reducer, everything, 4, rank, rows=name == "FSDP2", ranks_per_node=2 if name == NODES else 1)
    return said.getvalue(), report, (cost.sent, cost.dense)


SIZE = r"(\d+\.\d\d) kB"
LINES = {
    "FSDP2": (rf"on 4 ranks: {SIZE} -> {SIZE} per rank and step \(.*x less than a reduce-scatter in fp32\)",
              rf"; weights by {re.escape(repr(WEIGHTS))}: {SIZE} -> {SIZE} per rank and pass"),
    "HSDP": (rf"between 2 nodes: {SIZE} -> {SIZE} per rank and step \(", ""),
    NODES: (rf"between 2 nodes: {SIZE} -> {SIZE} per node and step \(.* less than DDP's ring\)",
            "; inside a node exact"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LINES))
def test_the_line_says_what_is_so(four: Workers, name: str) -> None:
    results = four.run(announced, name=name)
    assert [said for said, *_ in results[1:]] == [""] * 3, "rank 0 speaks"
    said, report, cost = results[0]
    body, end = LINES[name]
    found = re.fullmatch(rf"compcomm: {re.escape(report.reducer)} {body}.*; memory {SIZE} per rank{end}\n", said)
    assert found, said
    node = [r for _, r, _ in results[: 2 if name == NODES else 1]]
    sent, dense = sum(r.bytes_sent for r in node), sum(r.bytes_dense for r in node)
    assert (sent, dense) == cost
    weights = (report.weight_bytes_dense, report.weight_bytes) if "weights" in end else ()
    due = [dense, sent, report.state_bytes, *weights]
    assert [1e3 * float(number) for number in found.groups()] == pytest.approx(due, abs=5.01)


def unlike_meshes(rank: int, world: int) -> Any:
    """The ranks of each replicate group give equal reducers, those of two such groups different ones."""
    return models.caught(lambda: cc.mesh(grid(), "replicate", (cc.Exact(), cc.PowerSGD(2))[rank % 2]))


def test_all_ranks_of_a_mesh_agree(four: Workers) -> None:
    for told in four.run(unlike_meshes):
        assert told[0] == "AgreementError", told
        models.said(told, r"reducer: Exact\(\) on ranks 0, 2, PowerSGD\(2\) on ranks 1, 3")
