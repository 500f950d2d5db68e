"""Plans as a whole: what is recommended where, what comes out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import compcomm as cc
from compcomm.__main__ import main
from compcomm.plan import kernels as measuring
from compcomm.plan.kernels import Kernels, Stages
from compcomm.plan.methods import PLAIN, default, method
from compcomm.plan.planner import Plan, breakeven, plan
from compcomm.plan.recommend import choose
from compcomm.plan.step import Prediction
from tests.fresh import Programs

# Milliseconds per stage for 6.5 million elements, rounded from a calibration on one core; an all-gather of selections
# at 4 and at 8 ranks. Fixed, so that what is recommended does not depend on the machine that runs the tests.
_MS = {
    "Exact()": (1.8, 0.1),
    "Cast(bfloat16)": (3.9, 2.0, 3.2),
    "ErrorFeedback(QSGD(bits=4, rounding='nearest'))": (5.2, 2.2, 3.0),
    "PowerSGD(4)": (5.4, 2.7, 6.7),
    "ErrorFeedback(SignScale())": (5.1, 2.2, 3.3),
    "ErrorFeedback(SparseAllReduce(TopK(ratio=0.01)))": (12.4, 2.3, 5.8),
}


def kernels() -> dict[str, Kernels]:
    size = 6_553_600
    found = {
        name: Kernels(Stages(4, size, tuple(1e-3 * ms for ms in stages), (0,) * len(stages)))
        for name, stages in _MS.items()
    }
    gathered = Kernels(Stages(4, size, (5.1e-3, 2.6e-3), (0, 4 * 448_420)), (0.0, 1.5e-4 / 448_420))
    return {**found, "DDP": Kernels(), "ErrorFeedback(TopK(ratio=0.01))": gathered}


SPARSE = (
    "DDP",
    "Cast(bfloat16)",
    "ErrorFeedback(TopK(ratio=0.01))",
    "ErrorFeedback(SparseAllReduce(TopK(ratio=0.01)))",
)


_ALL = tuple(m.text for m in default())


def made(workers: int, bandwidth: str, only: tuple[str, ...] = _ALL) -> Plan:
    chosen = [m for m in default() if m.text in only]
    return plan(
        "resnet50", workers, bandwidth=bandwidth, latency="50us", compute=0.2, methods=chosen, kernels=kernels()
    )


def test_four_workers_and_sixty_four_want_different_methods() -> None:
    """An all-gather of selections grows with the workers; what each rank sends of a sum or of shares does not."""
    few, many = (made(workers, "1gbit").recommendation for workers in (4, 64))
    assert few.method == "ErrorFeedback(TopK(ratio=0.01))", few
    assert many.method not in (few.method, "DDP"), many
    few, many = (made(workers, "1gbit", only=SPARSE).recommendation for workers in (4, 64))
    assert few.method == "ErrorFeedback(TopK(ratio=0.01))"
    assert many.method == "ErrorFeedback(SparseAllReduce(TopK(ratio=0.01)))"
    assert many.line == "hook = cc.attach(model, cc.ErrorFeedback(cc.SparseAllReduce(cc.TopK(ratio=0.01))))"


def test_on_a_fast_link_nothing_pays() -> None:
    found = made(4, "100gbit").recommendation
    assert found.method == "DDP" and found.line == "compression does not pay here: use DDP as it is"
    assert "hides behind the backward pass" in found.reason


def test_where_latency_counts_a_method_may_pay_on_fast_links_alone() -> None:
    """Half the rounds, more bytes: it loses where bytes count, and the table says so beside its praise."""
    compared = [PLAIN, method("ErrorFeedback(TopK(0.02))")]
    found = plan(
        "resnet50", 64, bandwidth="10gbit", latency="1ms", compute=0.1, methods=compared,
        kernels={"DDP": Kernels(), "ErrorFeedback(TopK(ratio=0.02))": Kernels()},
    )  # fmt: skip
    row = found.rows[1]
    assert found.recommendation.method == "ErrorFeedback(TopK(ratio=0.02))" and row.pays
    assert any(low < 1e10 < high for low, high in row.pays), row.pays
    assert row.pays[0][0] > 0 and "> 135 Mbit/s" in str(found)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match=r"plan\(methods=\[\]\): nothing to compare"):
        plan([("a", (300, 300))], 4, bandwidth="1gbit", compute=0.01, methods=[])


def test_close_to_the_best_the_one_that_loses_less_is_taken_and_says_so() -> None:
    def step(name: str, seconds: float) -> Prediction:
        return Prediction(name, seconds, 0.5, 0.0, 0.0, 1, 2)

    found = choose([step("DDP", 2.0), step("TopK(0.1)", 1.02), step("TopK(0.01)", 1.0)])
    assert found.method == "TopK(0.1)" and "TopK(0.01) would save 2.0 %, and loses more" in found.reason
    assert choose([step("DDP", 2.0), step("TopK(0.1)", 1.2), step("TopK(0.01)", 1.0)]).method == "TopK(0.01)"
    assert choose([step("DDP", 1.02), step("TopK(0.1)", 1.0)]).method == "DDP"


def test_break_even_is_where_both_steps_are_equal() -> None:
    ((low, high),) = breakeven(lambda b: 1.0 + 1e9 / b, lambda b: 4e9 / b)
    assert low == 0 and high == pytest.approx(3e9, rel=1e-5)
    assert breakeven(lambda b: 1 / b, lambda b: 2 / b) == ((0.0, float("inf")),)
    assert breakeven(lambda b: 2 / b, lambda b: 1 / b) == () == breakeven(lambda b: 1.0, lambda b: 1.0)
    for row in made(16, "1gbit").rows:
        for edge in {e for bounds in row.pays or () for e in bounds} - {0.0, float("inf")}:
            there = made(16, f"{edge:.0f} bit/s")
            ours = next(r.prediction.seconds for r in there.rows if r.short == row.short)
            best = min(r.prediction.seconds for r in there.rows if r.pays is None)
            assert ours == pytest.approx(best, rel=1e-3)


def test_speedups_bytes_and_the_table() -> None:
    found = made(64, "1gbit")
    rows = {r.prediction.method: r for r in found.rows}
    quantised = rows["ErrorFeedback(QSGD(bits=4, rounding='nearest'))"]
    assert quantised.over_fp32 == pytest.approx(rows["DDP"].prediction.seconds / quantised.prediction.seconds)
    assert quantised.prediction.sent == 26_100_344 and rows["DDP"].prediction.ratio == 1.0
    said = str(found)
    assert len(said.splitlines()) == 15
    assert all(len(line) <= 130 for line in said.splitlines()[1:-3])
    assert rows["DDP"].prediction.seconds == pytest.approx(1.735, rel=0.01), "64 workers, ring of 5 buckets"
    assert json.loads(json.dumps(found.as_dict()))["recommendation"]["method"] == found.recommendation.method


def test_bad_calls_say_what_is_wrong() -> None:
    for workers in (1, 0, -2, 2.0, True, 10**6):
        with pytest.raises(ValueError, match=r"plan\(workers="):
            plan("resnet50", workers, bandwidth="1gbit", compute=0.2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of the two"):
        plan("resnet50", 4, compute=0.2)
    with pytest.raises(ValueError, match="bits or bytes"):
        plan("resnet50", 4, bandwidth="5", compute=0.2)
    with pytest.raises(ValueError, match="seconds"):
        plan("resnet50", 4, bandwidth="1gbit", compute="-1")
    with pytest.raises(ValueError, match="method"):
        method("bfloat16")


SMALL = ["--model", "net.py", "--workers", "8", "--bandwidth", "100mbit", "--compute", "50ms"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(
        "def shapes():\n    return [('a', (300, 500)), ('b', (500,)), ('c', (700, 300))]\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(here: Path, programs: Programs) -> None:
    code = f"import os, runpy; os.chdir({str(here)!r}); runpy.run_module('compcomm', run_name='__main__')"
    done = programs.run(code, "plan", *SMALL, "--reducer", "TopK(ratio=0.001)", "--json", "p.json", warm=True)
    assert done.returncode == 0, done.stderr
    assert "method" in done.stdout and "TopK(ratio=0.001)" in done.stdout and "written: p.json" in done.stdout
    found = json.loads((here / "p.json").read_text())
    assert len(found["rows"]) == 9 and found["workers"] == 8 and found["numel"] == 360_500


@pytest.mark.slow
@pytest.mark.multi
def test_measured_between_ranks(here: Path, programs: Programs) -> None:
    """The link, the kernels and the computation of a module, by two ranks over loopback."""
    (here / "mlp.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Sequential):\n    def example(self): return (torch.randn(8, 300),)\n"
        "def model(): return Net(nn.Linear(300, 500), nn.ReLU(), nn.Linear(500, 10))\n"
    )
    said = programs.ranks(2, "compcomm", "plan", "--measure", "--model", "mlp.py", "--json", "m.json")
    assert said.count("vs bf16") == 1, "rank 0 alone prints"
    found = json.loads((here / "m.json").read_text())
    assert found["workers"] == 2 and set(found["link"]["speeds"]) == {"AllReduce", "AllGather", "AllToAll"}
    assert 0 < found["compute_seconds"] < 1
    assert all(row["kernels"] > 0 for row in found["rows"][1:])


@pytest.mark.slow
def test_the_curves(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_BUDGET", 0.0)
    assert main(["plan", *SMALL, "--png", "p.png"]) == 0
    assert (here / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert "written: p.png" in capsys.readouterr().out


def test_bad_options_end_with_one_line_and_code_2(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (["--bandwidth", "5"], "bits or bytes"),
        (["--model", "resnet5"], "Did you mean resnet50"),
        (["--workers", "1"], "workers=1"),
        (["--reducer", "TopKK(0.1)"], "Did you mean TopK"),
        (["--measure"], "torchrun"),
        (["--reducer", "AllReduce(TopK(0.1))"], "cannot be summed"),
    ):
        assert main(["plan", *SMALL, *options]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and said in lines[0], lines
    assert main(["plan", "--workers", "4"]) == 2
    assert "--bandwidth is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_methods_are_descriptions_and_the_first_is_ddp_as_it_is() -> None:
    assert next(iter(default())).reducer is None and all(m.resolved(8) is not None for m in default()[1:])
    assert method(cc.TopK(0.5)).text == method("TopK(0.5)").text == "TopK(ratio=0.5)"
