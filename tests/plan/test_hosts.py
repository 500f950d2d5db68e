"""Plans for nodes of several ranks, and for sharded models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import compcomm as cc
from compcomm.__main__ import main
from compcomm.plan.buckets import cut
from compcomm.plan.hosts import DDP, FullyShard, Nodes
from compcomm.plan.kernels import Kernels
from compcomm.plan.link import Link
from compcomm.plan.methods import HALF, PLAIN, Method, method
from compcomm.plan.planner import plan

SHAPES = [(f"layer.{i}", (512, 512)) for i in range(8)] + [("bias", (512,))]
NUMEL = 8 * 512 * 512 + 512
FOUR = "ErrorFeedback(QSGD(bits=4, rounding='nearest'))"
SLOW, INSIDE = Link.of("100mbit", "50us"), Link.of("10gbit", "5us")
NOTHING = {text: Kernels() for text in ("DDP", "Exact()", FOUR, HALF.text)}
"""What takes no time to code."""


def predict(host: DDP, m: Method, workers: int, link: Link = SLOW) -> float:
    return host.predict(m, cut(SHAPES), workers, link, Kernels(), 0.0).seconds


def test_a_node_sends_what_the_dry_run_says() -> None:
    found = plan(SHAPES, 8, SLOW, compute=0.05, methods=["Exact()", FOUR], kernels=NOTHING, host=Nodes(4, INSIDE))
    for row, text in zip(found.rows, ("Exact()", FOUR), strict=True):
        due = sum(cc.cost(cc.parse(text), layout, 8, ranks_per_node=4).sent for layout in cut(SHAPES))
        assert row.prediction.sent == pytest.approx(due, rel=0.01)
        assert row.prediction.dense == pytest.approx(2 * 4 * NUMEL * 7 / 8, rel=1e-3)
    assert "8 workers on nodes of 4 (inside: 10 Gbit/s" in found.title and "MB/node" in str(found)
    assert found.recommendation.line == f'hook = cc.attach(model, {_python(FOUR)}, between="nodes")'


def _python(text: str) -> str:
    return text.replace("ErrorFeedback", "cc.ErrorFeedback").replace("QSGD", "cc.QSGD")


def test_two_kinds_of_link_by_hand() -> None:
    """One bucket after the other: into the owners, over the slow link, out of them."""
    numel, per, nodes = 1 << 20, 4, 2
    one = [(f"w{i}", (512, 512)) for i in range(4)]
    host, line = Nodes(per, Link(1e-6, 1e9)), Link(1e-3, 1e8)
    inside = 3 * 1e-6 + 8 * 4 * numel * 3 / 4 / 1e9
    between = 2 * (nodes - 1) * 1e-3 + 8 * 2 * (4 * numel * (nodes - 1) / nodes) / 1e8
    found = host.predict(method("Exact()"), [cc.Layout.of(one)], per * nodes, line, Kernels(), 0.0)
    assert found.seconds == pytest.approx(2 * inside + between, rel=1e-3)
    assert predict(Nodes(4, Link.of("1gbit")), method("Exact()"), 8) > predict(host, method("Exact()"), 8) * 0.9
    flat = host.predict(PLAIN, [cc.Layout.of(one)], per * nodes, line, Kernels(), 0.0)
    assert flat.seconds == pytest.approx(14 * 1e-3 + 8 * 2 * (4 * numel * 7 / 8) / 1e8, rel=1e-3), "one ring of eight"


def test_a_sharded_step_gathers_weights_twice() -> None:
    eight, workers = cc.QSGD(bits=8, rounding="nearest"), 4
    exact, coded = FullyShard(), FullyShard(eight)
    each = 4 * NUMEL * (workers - 1) // workers
    stock = exact.predict(PLAIN, cut(SHAPES), workers, SLOW, Kernels(), 0.1)
    assert stock.sent == stock.dense == pytest.approx(3 * each, rel=1e-3)
    assert stock.seconds == pytest.approx(0.1 + 8 * 3 * each / 1e8, rel=0.05), "the host waits for all of it"
    half = exact.predict(HALF, cut(SHAPES), workers, SLOW, Kernels(), 0.1)
    assert half.sent == pytest.approx(stock.sent / 2, rel=1e-3)
    ours = coded.predict(method(FOUR), cut(SHAPES), workers, SLOW, Kernels(), 0.1)
    rows = sum(cc.cost(cc.parse(FOUR), layout, workers, rows=True).sent for layout in cut(SHAPES))
    assert ours.sent == pytest.approx(rows + 2 * each / 4, rel=0.02)
    assert ours.seconds < half.seconds < stock.seconds


def test_sharded_plans_compare_with_bfloat16_and_name_the_weights() -> None:
    host = FullyShard(cc.QSGD(bits=8, rounding="nearest"))
    compared = [PLAIN, HALF, method("Exact()"), method(FOUR)]
    found = plan(SHAPES, 4, SLOW, compute=0.05, methods=compared, kernels=NOTHING, host=host)
    plain, half, exact, ours = found.rows
    assert plain.pays is None and half.pays is None and exact.pays is not None, "exact gradients, coded weights"
    assert ours.over_bf16 == pytest.approx(half.prediction.seconds / ours.prediction.seconds)
    assert found.recommendation.line.endswith("weights=cc.QSGD(bits=8, rounding='nearest'))")
    fast = plan(SHAPES, 4, Link.of("10tbit"), compute=0.05, methods=compared, kernels=NOTHING, host=host)
    assert fast.recommendation.line == "compression does not pay here: use fully_shard as it is"
    only = plan(SHAPES, 4, SLOW, compute=0.05, methods=[PLAIN, HALF], kernels=NOTHING, host=FullyShard())
    assert "MixedPrecisionPolicy(param_dtype=torch.bfloat16)" in only.recommendation.line
    with pytest.raises(ValueError, match="PowerSGD"):
        plan(SHAPES, 4, SLOW, compute=0.05, methods=["PowerSGD(4)"], host=FullyShard())


@pytest.mark.slow
def test_the_command_plans_for_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = tmp_path / "net.py"
    net.write_text("def shapes():\n    return [('w', (512, 512)), ('b', (512,))]\n")
    given = ["plan", "--model", str(net), "--workers", "8", "--bandwidth", "100mbit", "--compute", "10ms"]
    for options, host in (
        (["--host", "nodes", "--ranks-per-node", "4"], {"host": "Nodes", "ranks_per_node": 4}),
        (["--host", "fsdp2", "--weights", "QSGD(bits=8, rounding='nearest')"], {"host": "FullyShard"}),
    ):
        png = ["--png", str(tmp_path / "plan.png")]
        assert main([*given, *options, *png, "--json", str(tmp_path / "plan.json")]) == 0
        written = json.loads((tmp_path / "plan.json").read_text())
        assert host.items() <= written.items() and (tmp_path / "plan.png").stat().st_size > 10_000
        assert "kernels on this machine" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ranks-per-node", "4"], "that is for --host nodes"),
        (["--inside", "100gbit"], "that is for --host nodes"),
        (["--weights", "QSGD(bits=8)"], "that is for --host fsdp2"),
        (["--host", "nodes"], "give --ranks-per-node"),
        (["--host", "nodes", "--ranks-per-node", "3"], "equally many ranks"),
        (["--host", "nodes", "--ranks-per-node", "8"], "two nodes or more"),
        (["--host", "nodes", "--ranks-per-node", "1"], "2 or more"),
        (["--host", "nodes", "--ranks-per-node", "4", "--inside", "9"], "bits or bytes"),
        (["--host", "fsdp2", "--weights", "QSGD(bits=8)"], "rounds at random"),
        (["--host", "fsdp2", "--reducer", "PowerSGD(4)"], "PowerSGD"),
    ],
)
def test_what_does_not_fit_is_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--workers", "8", "--bandwidth", "1gbit", "--compute", "0.2", *options]) == 2
    assert said in capsys.readouterr().err


def test_sharded_models_of_very_many_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="up to 256"):
        plan(SHAPES, 512, SLOW, compute=0.05, host=FullyShard())


def test_the_dtype_of_gradients_counts() -> None:
    half = DDP().predict(PLAIN, cut(SHAPES), 4, SLOW, Kernels(), 0.0, dtype=torch.bfloat16)
    assert half.sent == pytest.approx(DDP().predict(PLAIN, cut(SHAPES), 4, SLOW, Kernels(), 0.0).sent / 2, rel=1e-3)
