"""What the benchmarks train, and how they decide and compare."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import loop  # noqa: E402
import replay  # noqa: E402
import tasks  # noqa: E402
import train  # noqa: E402
from tasks import text  # noqa: E402


def test_text_is_taken_from_the_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.txt").write_text("To be", encoding="utf-8")
    monkeypatch.setenv("COMPCOMM_DATA", str(tmp_path))
    assert text.load() == ("To be", "tinyshakespeare.txt")


@pytest.mark.slow
def test_text_falls_back_to_what_python_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPCOMM_DATA", raising=False)
    monkeypatch.setattr(text, "_BESIDE", tmp_path)
    found = text.load()
    assert len(found.characters) > 300_000 and "Python" in found.source
    assert found == text.load()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # as where it is packaged apart
    found = text.load()
    assert len(found.characters) > 300_000 and "docstrings" in found.source


def test_charlm_is_a_real_model_on_deterministic_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.txt").write_text("the quick brown fox jumps\n" * 4000, encoding="utf-8")
    monkeypatch.setenv("COMPCOMM_DATA", str(tmp_path))
    task = tasks.load("charlm")
    model, twin = task.model(0), task.model(0)
    assert sum(p.numel() for p in model.parameters()) >= 800_000
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    first = task.batch(0, 3, 0)
    assert torch.equal(first.x, task.batch(0, 3, 0).x) and not torch.equal(first.x, task.batch(0, 3, 1).x)
    assert torch.equal(first.x[:, 1:], first.y[:, :-1])
    logits = model(first.x)
    changed = first.x.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 5
    assert torch.allclose(logits[:, :40], model(changed)[:, :40])  # no position sees what comes after it
    assert not torch.allclose(logits[:, 40:], model(changed)[:, 40:])
    counts = [sum(len(b.x) for b in task.validation(r, 3)) for r in range(3)]
    assert counts[0] == counts[1] == counts[2] > 0


def test_unknown_tasks_and_reducers_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="charlm, digits"):
        tasks.load("imagenet")
    with pytest.raises(ValueError, match="not both"):
        loop.Budget(seconds=1.0, steps=1)


def test_steps_until_the_next_validation() -> None:
    """After a rough start the pace decides; a share that is nearly reached takes no further step."""
    clock, budget = loop.Clock(), loop.Budget(seconds=40)
    assert loop.due(clock, budget, 0.05) == 1
    clock = loop.Clock(seconds=1.0, steps=[0.1] * 10)
    assert loop.due(clock, budget, 0.05) == 10
    assert loop.due(loop.Clock(seconds=1.96, steps=[0.1] * 20), budget, 0.05) == 0
    assert loop.due(clock, loop.Budget(steps=200), 0.5) == 90


def run(pace: float, payload: int, losses: list[float]) -> dict[str, object]:
    curve = [[i * 10 * pace, i * 10 * payload, i * 10, loss] for i, loss in enumerate(losses)]
    return {
        "seconds_per_step": pace, "payload_bytes_per_step": payload, "steps": curve[-1][2], "curve": curve,
        "loss": losses[-1],
    }  # fmt: skip


def test_time_to_target_and_what_a_slow_link_would_make_of_it() -> None:
    """Half the bytes at the same pace: no gain on loopback, and on a slow link as predicted by hand."""
    rows = [run(0.1, 5_000_000, [4, 3, 2]), run(0.1, 2_500_000, [4, 3, 2]), run(0.1, 0, [4, 3.5, 3.1])]
    train.compare(rows)
    assert [r["seconds_to_target"] for r in rows] == [pytest.approx(2.0), pytest.approx(2.0), None]
    assert [r["speedup"] for r in rows] == [1, 1, None]
    train.predict(rows, "100mbit", 5.0)  # Exact: 0.1 + 0.4 s per step, 10 steps in 5 s, where its loss is 3
    first, half, slow = (r["predicted"] for r in rows)
    assert first["target"] == pytest.approx(3) and first["seconds_to_target"] == pytest.approx(5)
    assert half["seconds_to_target"] == pytest.approx(3) and half["speedup"] == pytest.approx(5 / 3)
    assert slow["seconds_to_target"] is None and slow["speedup"] is None


def test_a_dip_is_not_the_target_and_what_comes_after_the_end_does_not_count() -> None:
    rows = [run(0.1, 0, [4, 3, 2]), run(0.1, 0, [4, 1, 3]), run(0.1, 0, [4, 1, 3, 1])]
    train.compare(rows)
    assert [r["seconds_to_target"] for r in rows] == [pytest.approx(2.0), None, pytest.approx(2.5)]
    train.predict(rows, "1gbit", 1.0)  # ten steps each: the ups and downs after them are past the end
    assert [r["predicted"]["target"] for r in rows] == [pytest.approx(3)] * 3
    assert [r["predicted"]["seconds_to_target"] for r in rows] == [pytest.approx(x) for x in (1.0, 1 / 3, 1 / 3)]
    assert train.until([0, 10], [4, 3], 5) == ([0, 5], [4, 3.5]) and train.until([0, 10], [4, 3], 20)[0] == [0, 10]


def test_buckets_are_cut_as_ddp_cuts_them() -> None:
    """The last parameter first; a bucket is closed by the parameter that brings it to its size."""
    model = replay.Shapes([("a", (10,)), ("b.w", (3, 4)), ("c", (8,)), ("d", (2,))])
    buckets = replay.cut(model, first=8, cap=60)
    assert [b.names for b in buckets] == [["d"], ["c", "b/w"], ["a"]]
    assert [b.is_last() for b in buckets] == [False, False, True]
    assert [tuple(g.shape) for g in buckets[1].gradients()] == [(8,), (3, 4)]


def test_gradients_know_their_mean() -> None:
    """The mean that a rank computes alone is the mean of what the ranks have."""

    def of(rank: int) -> tuple[list[replay.Bucket], replay.Gradients]:
        buckets = replay.cut(replay.Shapes([("a", (50, 40)), ("b", (30,))]))
        return buckets, replay.Gradients(buckets, rank, 2)

    (left, known), (right, _) = of(0), of(1)
    known.fill(3)
    _.fill(3)
    for a, b in zip(left, right, strict=True):
        assert not torch.equal(a.flat, b.flat)
        a.flat.add_(b.flat).div_(2)
    assert known.error(3) < 1e-6
    known.fill(3)
    assert known.error(3) > 0.1
