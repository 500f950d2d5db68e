"""Plans for nodes of several ranks, and for sharded models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import compcomm as cc
from compcomm.__main__ import main
from compcomm.plan import planner
from compcomm.plan.buckets import cut
from compcomm.plan.hosts import DDP, Host, Nodes, Setting
from compcomm.plan.kernels import Kernels, Stages
from compcomm.plan.link import Link
from compcomm.plan.methods import HALF, PLAIN, POLICY, Method, method
from compcomm.plan.planner import plan
from compcomm.plan.recommend import choose
from compcomm.plan.result import COLUMNS
from compcomm.plan.sharded_hosts import HSDP, FullyShard
from compcomm.plan.step import Prediction

SHAPES = [(f"layer.{i}", (512, 512)) for i in range(8)] + [("bias", (512,))]
NUMEL = 8 * 512 * 512 + 512
FOUR = "ErrorFeedback(QSGD(bits=4, rounding='nearest'))"
SLOW, INSIDE = Link.of("100mbit", "50us"), Link.of("10gbit", "5us")
NOTHING = {text: Kernels() for text in ("DDP", "Exact()", FOUR, HALF.text)}
"""What takes no time to code."""


def predict(
    host: Host, m: Method, workers: int, compute: float = 0.0, dtype: torch.dtype = torch.float32, **kernels: float
) -> Prediction:
    return host.predict(m, cut(SHAPES), Setting(workers, SLOW, Kernels(**kernels), compute, dtype=dtype))  # type: ignore[arg-type]


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
    at = Setting(per * nodes, line)
    found = host.predict(method("Exact()"), [cc.Layout.of(one)], at)
    assert found.seconds == pytest.approx(2 * inside + between, rel=1e-3)
    slower = Nodes(per, Link(1e-6, 1e8)).predict(method("Exact()"), [cc.Layout.of(one)], at)
    assert slower.seconds == pytest.approx(found.seconds + 2 * 8 * 4 * numel * 3 / 4 * (1 / 1e8 - 1 / 1e9), rel=1e-3)
    flat = host.predict(PLAIN, [cc.Layout.of(one)], at)
    assert flat.seconds == pytest.approx(14 * 1e-3 + 8 * 2 * (4 * numel * 7 / 8) / 1e8, rel=1e-3), "one ring of eight"


def test_a_sharded_step_gathers_weights_twice() -> None:
    eight, workers = cc.QSGD(bits=8, rounding="nearest"), 4
    exact, coded = FullyShard(), FullyShard(eight)
    each = 4 * NUMEL * (workers - 1) // workers
    stock = predict(exact, PLAIN, workers, 0.1)
    assert stock.sent == stock.dense == pytest.approx(3 * each, rel=1e-3)
    assert stock.seconds == pytest.approx(0.1 + 8 * 3 * each / 1e8, rel=0.05), "the host waits for all of it"
    half = predict(exact, HALF, workers, 0.1)
    assert half.sent == pytest.approx(stock.sent / 2, rel=1e-3)
    ours = predict(coded, method(FOUR), workers, 0.1)
    rows = sum(cc.cost(cc.parse(FOUR), layout, workers, rows=True).sent for layout in cut(SHAPES))
    assert ours.sent == pytest.approx(rows + 2 * each / 4, rel=0.02)
    assert ours.seconds < half.seconds < stock.seconds
    both = predict(exact, method(FOUR), workers, 0.1)
    assert both.sent == pytest.approx(rows + 2 * each / 2, rel=0.02), "weights in bfloat16, under the policy"
    assert ours.seconds < both.seconds < half.seconds


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


def test_a_plan_without_weights_is_for_the_policy_and_a_hook() -> None:
    coded = FullyShard(cc.QSGD(bits=8, rounding="nearest"))
    compared = [PLAIN, HALF, method(FOUR)]
    host = FullyShard(coded=coded)
    found = plan(SHAPES, 4, SLOW, compute=0.05, methods=compared, kernels=NOTHING, host=host)
    assert found.recommendation.line == f"hook = cc.attach(model, {_python(FOUR)})  # {POLICY}"
    assert "1 unit, which" in plan([("w", (9, 9))], 4, SLOW, compute=0.05, methods=[PLAIN], host=host).title
    assert f"{len(cut(SHAPES))} units, which stand for your own, 4 workers" in found.title
    assert "weights in bfloat16 (MixedPrecisionPolicy)" in found.title
    better = plan(SHAPES, 4, SLOW, compute=0.05, methods=compared, kernels=NOTHING, host=coded)
    least = min(row.prediction.seconds for row in better.rows)
    said = "--weights \"QSGD(bits=8, rounding='nearest')\" codes the weights too: QSGD(bits=4) + feedback would take "
    assert found.hint == f"{said}{1e3 * least:.4g} ms" and found.hint in str(found)
    assert found.as_dict()["hint"] == found.hint and "hint" not in better.as_dict() and "--weights" not in str(better)
    texts = [[m.text for m in h.methods()] for h in (host, coded)]
    assert ["Exact()" in t for t in texts] == [False, True], "under the policy it does what that does alone"
    measured = FullyShard.of(None, 4)
    assert measured.coded is not None and measured.coded.weights == coded.weights and measured.coded.coding > 0


def test_what_is_gathered_and_coded_is_stretched_as_the_rest_is() -> None:
    for host, workers in ((FullyShard(cc.QSGD(bits=8, rounding="nearest"), 1e-9), 4), (HSDP(2, INSIDE), 4)):
        one, two = (predict(host, method(FOUR), workers, stretch=s) for s in (1.0, 2.0))
        assert two.wire == pytest.approx(2 * one.wire) and two.kernels == pytest.approx(2 * one.kernels)
        assert two.seconds == pytest.approx(2 * one.seconds)


def test_speed_ups_are_over_the_host_without_a_hook() -> None:
    compared = ["Exact()", FOUR]
    found = plan(SHAPES, 8, SLOW, compute=0.05, methods=[PLAIN, *compared], kernels=NOTHING, host=Nodes(4, INSIDE))
    plain, exact, ours = (row.prediction.seconds for row in found.rows)
    assert [row.over_fp32 for row in found.rows] == [1.0, plain / exact, plain / ours] and exact < plain
    assert found.rows[2].pays, "what it must beat is still the best that sends all bits"
    without = plan(SHAPES, 8, SLOW, compute=0.05, methods=compared, kernels=NOTHING, host=Nodes(4, INSIDE))
    assert [row.over_fp32 for row in without.rows] == [1.0, exact / ours]


def test_two_levels_may_pay_where_nothing_is_coded() -> None:
    compared = [PLAIN, "Exact()"]
    found = plan(SHAPES, 8, SLOW, compute=0.01, methods=compared, kernels=NOTHING, host=Nodes(4, INSIDE))
    assert found.recommendation.line == 'hook = cc.attach(model, cc.Exact(), between="nodes")'
    assert "as fast as DDP" in found.recommendation.reason
    assert choose([row.prediction for row in found.rows[1:]]).method == "DDP", "all there is to be beaten"


def test_shards_between_nodes_by_hand() -> None:
    """One unit: scattered sums and two gathers inside, then all four ranks' shards over the node's link together."""
    numel, per, nodes = 1 << 20, 4, 2
    unit, host, line = [cc.Layout.of([("w", (1024, 1024))])], HSDP(per, Link(1e-6, 1e9)), Link(1e-3, 1e8)
    inside = 3 * (3 * 1e-6 + 8 * 4 * numel * 3 / 4 / 1e9)
    between = 2 * (nodes - 1) * 1e-3 + 8 * 2 * (4 * numel * (nodes - 1) / nodes) / 1e8
    at = Setting(per * nodes, line, compute=0.1)
    for m in (PLAIN, method("Exact()")):
        found = host.predict(m, unit, at)
        assert found.seconds == pytest.approx(0.1 + inside + between, rel=1e-3), "the host waits for all of it"
        assert found.sent == found.dense == 4 * numel
    measured = Kernels(Stages(nodes, numel // per, (0.02, 0.01), (0, 0)))
    coded = host.predict(method("Exact()"), unit, at._replace(kernels=measured))
    assert coded.seconds == pytest.approx(found.seconds + 0.03), "each rank codes its own shards"


@pytest.mark.parametrize("text", [FOUR, "PowerSGD(4)", "ErrorFeedback(TopK(ratio=0.01))"])
def test_a_node_of_shards_sends_what_the_dry_run_says(text: str) -> None:
    per, nodes = 4, 2
    found = predict(HSDP(per, INSIDE), method(text), per * nodes)
    shards = [layout.sharded(per).row(per, r) for layout in cut(SHAPES) for r in range(per)]
    assert found.sent == sum(cc.cost(cc.parse(text), shard, nodes).sent for shard in shards)
    assert found.dense == pytest.approx(4 * NUMEL, rel=1e-3)


def test_kernels_are_timed_on_shards_between_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def calibrate(reducer: object, layouts: Sequence[cc.Layout], world: int, **_: object) -> Kernels:
        timed.append(sum(layout.numel for layout in layouts))
        assert world == 2, "nodes"
        return Kernels()

    monkeypatch.setattr(planner, "calibrate", calibrate)
    plan(SHAPES, 8, SLOW, compute=0.05, methods=["Exact()"], host=HSDP(4, INSIDE))
    assert timed == [NUMEL // 4]


def test_plans_for_shards_between_nodes_name_the_dimension() -> None:
    host = HSDP(4, INSIDE)
    compared = [m for m in host.methods() if m.text in NOTHING]
    found = plan(SHAPES, 8, SLOW, compute=0.05, methods=compared, kernels=NOTHING, host=host)
    assert found.recommendation.line == f'hook = cc.attach(model, {_python(FOUR)}, between="replicate")'
    assert "with fully_shard inside nodes of 4 (inside: 10 Gbit/s" in found.title and "MB/node" in str(found)
    assert "units, which stand for your own" in found.title and "fully_shard without a hook" in str(found)
    assert {"host": "HSDP", "ranks_per_node": 4}.items() <= found.as_dict().items()
    fast = plan(SHAPES, 8, Link.of("10tbit"), compute=0.05, methods=compared, kernels=NOTHING, host=host)
    assert fast.recommendation.line.endswith("use fully_shard on both dimensions of the mesh as it is")


def test_the_page_says_what_every_column_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "planner.md").read_text()
    told = page.partition("## What the columns are")[2].partition("\n## ")[0]
    for column in (*COLUMNS[1:], "MB/node"):
        assert f"| `{column}` |" in told, column


@pytest.mark.slow
def test_the_command_plans_for_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = tmp_path / "net.py"
    net.write_text("def shapes():\n    return [('w', (512, 512)), ('b', (512,))]\n")
    given = ["plan", "--model", str(net), "--workers", "8", "--bandwidth", "100mbit", "--compute", "10ms"]
    for options, host in (
        (["--host", "nodes", "--ranks-per-node", "4"], {"host": "Nodes", "ranks_per_node": 4}),
        (["--host", "fsdp2", "--weights", "QSGD(bits=8, rounding='nearest')"], {"host": "FullyShard"}),
        (["--host", "hsdp", "--ranks-per-node", "4"], {"host": "HSDP", "ranks_per_node": 4}),
    ):
        png = ["--png", str(tmp_path / "plan.png")]
        assert main([*given, *options, *png, "--json", str(tmp_path / "plan.json")]) == 0
        written = json.loads((tmp_path / "plan.json").read_text())
        assert host.items() <= written.items() and (tmp_path / "plan.png").stat().st_size > 10_000
        assert "kernels on this machine" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ranks-per-node", "4"], "that is for --host nodes or hsdp."),
        (["--inside", "100gbit"], "that is for --host nodes or hsdp."),
        (["--host", "hsdp", "--ranks-per-node", "4", "--weights", "QSGD(bits=8)"], "that is for --host fsdp2."),
        (["--host", "hsdp"], "--host hsdp: give --ranks-per-node"),
        (["--host", "hsdp", "--ranks-per-node", "3"], "equally many ranks"),
        (["--host", "hsdp", "--ranks-per-node", "1"], "2 or more"),
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
    half = predict(DDP(), PLAIN, 4, dtype=torch.bfloat16)
    assert half.sent == pytest.approx(predict(DDP(), PLAIN, 4).sent / 2, rel=1e-3)
