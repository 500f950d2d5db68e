"""The GPU part of the kernel benchmark without a GPU: its calls, its verdicts, the page's table."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.fresh import Ended, Programs
from tests.ops.sparse_case import using

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def kernels(programs: Programs, *options: str) -> Ended:
    return programs.script(ROOT / "benchmarks" / "kernels.py", *options)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(programs: Programs) -> None:
    done = kernels(programs, "--device", "cuda", "--numel", "4096")
    assert done.returncode == 2
    assert "no GPU here" in done.stderr and "Nothing was measured" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.full
def test_every_case_is_a_valid_call_that_agrees_with_the_reference(tmp_path: Path, programs: Programs) -> None:
    file = tmp_path / "calls.json"
    done = kernels(programs, "--device", "interpreter", "--numel", "4096", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert not any("seconds" in row for row in rows), "there is nothing to measure without a GPU"
    made = {(r["op"], r["dtype"]) for r in rows if r["backend"] == "triton" and "skipped" not in r}
    asked = {(op, dtype) for op, dtype, *_ in module("gpu_targets").targets()}
    assert sorted(asked - made) == [], "rows with a target that no Triton kernel serves"
    skipped = {r["backend"] for r in rows if "skipped" in r}
    assert skipped <= {"cuda", "cupy"}


def buffers(dtype: torch.dtype) -> Any:
    b = module("gpu_kernels").Buffers(8192, dtype, "cpu")
    b.x[:512], b.add[:512] = 0, 0
    return b


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_formulas_given_to_torch_compile_are_those_of_the_ops(dtype: torch.dtype) -> None:
    """What the kernels are measured against does the same job: the same codes, the same error left."""
    peers, ours = module("gpu_peers"), module("gpu_kernels")
    for name in ("qsgd4", "sign", "topk"):
        b, other = buffers(dtype), buffers(dtype)
        with using("reference"):
            {"qsgd4": ours.qsgd, "sign": ours.sign, "topk": ours.topk}[name](b)()
        first, second = getattr(peers, name)(other.x, other.add, *((other.k,) if name == "topk" else ()))
        if name == "topk":
            assert torch.equal(other.x, b.x)
            assert first.numel() == second.numel() == b.k and bool((b.x[first] == 0).all())
            continue
        codes = b.wire[4 * 16 :][: first.numel()]
        assert torch.equal(first, codes), name
        torch.testing.assert_close(second, b.wire[: 4 * 16].view(torch.float32), rtol=1e-6, atol=0)
        torch.testing.assert_close(other.x, b.x, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-6)


def test_what_others_do_leaves_the_error_that_their_payload_makes() -> None:
    peers = module("gpu_peers")
    b = buffers(torch.float32)
    y = b.x + b.add
    signs, mean = peers.grace_sign(b.x, b.add)
    torch.testing.assert_close(b.x, y - (2.0 * signs - 1) * mean)
    b = buffers(torch.float32)
    values, kept = peers.grace_topk(b.x, b.add, b.k)
    torch.testing.assert_close(b.x.index_add(0, kept, values), y)
    b = buffers(torch.float32)
    bits, scale = peers.onebit(b.x, b.add, lambda positive: positive)
    torch.testing.assert_close(b.x, y - torch.where(bits, scale, -scale))


class Event:
    """A CUDA event on a machine without one: every interval takes a millisecond."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return 1.0


@pytest.mark.full
def test_what_is_measured_is_judged_and_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of it but the clock, which is a stand-in; then the page's table of the file that it writes."""
    ours, targets = module("gpu_kernels"), module("gpu_targets")
    monkeypatch.setattr(ours, "ON", {"cuda": "cpu"})
    monkeypatch.setattr(ours, "_l2", lambda: 1024)
    gpu = {"name": "a stand-in", "driver": "1", "cuda": "2", "triton": "3"}
    monkeypatch.setattr(ours, "describe", lambda: gpu)
    for name, stand_in in {
        "is_available": lambda: True, "Event": Event, "synchronize": lambda: None, "_sleep": lambda _: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(ours.gpu, "find", lambda *_: None)
    monkeypatch.setattr(ours, "backend", lambda kind: using("reference"))
    file = tmp_path / targets.FILE
    options = {
        "device": "cuda", "numel": 4096, "ops": None, "backend": ("triton", "cuda", "reference", "GRACE", "torch"),
        "repeats": 3, "budget": 0.0, "json": str(file),
    }  # fmt: skip
    namespace = module("argparse").Namespace(**options)
    assert ours.main(namespace) == 0
    found = json.loads(file.read_text())
    assert found["gpu"] == gpu and found["benchmark"] == "kernels-cuda"
    rows = {(r["op"], r["dtype"], r["backend"]): r for r in found["rows"]}
    assert not any("failed" in r or "skipped" in r for r in found["rows"])
    row = rows["qsgd4_encode nearest", "float32", "triton"]
    assert row["bytes"] == 4096 * (12 + 0.5 + 4 / 512) and row["seconds"] == row["copy_seconds"] == 1e-3
    assert row["share"] == pytest.approx((12 + 0.5 + 4 / 512) / 8)
    (target,) = row["targets"]
    assert target["reached"] is True and target["target"] == 0.85
    topk = rows["topk_encode 1 %, cold", "float32", "cuda"]["targets"]
    assert [(t["what"], t["found"], t["reached"]) for t in topk] == [
        ("share", 1.5, True), ("times torch.topk's speed", 1.0, False),
    ]  # fmt: skip
    assert rows["sign_encode, ResNet-50", "float32", "triton"]["targets"][0]["found"] == 1.0
    text = targets.section(tmp_path)
    assert "not yet measured" not in text and "one a stand-in, driver 1, CUDA 2" in text
    assert "| `qsgd4_encode nearest` | fp32 | 12.51 | 85% of copy | 156.3% | yes | triton | 1.000 |" in text
    assert "| `topk_encode 1 %, cold` | fp32 | 12 | 10x torch.topk | 1.00x | no | cuda |" in text


def test_without_a_file_every_figure_is_not_yet_measured(tmp_path: Path) -> None:
    targets = module("gpu_targets")
    lines = [line for line in targets.section(tmp_path).splitlines() if line.startswith("| `")]
    assert len(lines) == len(targets.targets()) and all("not yet measured" in line for line in lines)


def test_a_missed_target_is_told() -> None:
    targets = module("gpu_targets")
    rows: list[dict[str, Any]] = [
        {"op": "sign_encode", "backend": "triton", "dtype": dtype, "seconds": 1.0, "share": share}
        for dtype, share in (("float32", 0.849), ("bfloat16", 0.79))
    ]
    targets.judge(rows)
    assert [row["targets"][0]["reached"] for row in rows] == [False, False]
    rows[1]["share"] = 0.80
    targets.judge(rows)
    assert rows[1]["targets"][0]["reached"] and rows[1]["targets"][0]["found"] == pytest.approx(0.049)
