"""A host that is not DDP, on real processes: gradients in a padded buffer of one row per rank, means in this rank's row
alone, units with a session each, buckets that nobody numbers."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.core.source import Source, Target
from compcomm.engine.options import Options
from compcomm.engine.session import Session
from compcomm.transports.process_group import ProcessGroup

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi

UNITS = ({"a.weight": (13, 7), "a.bias": (13,)}, {"b.weight": (40, 11)}, {"c.weight": (5, 33), "c.bias": (5,)})


class Shards:
    """Some parameters as a sharded host holds them: row r of the buffer has piece r of each, and padding."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], world: int) -> None:
        pieces = {name: -(-torch.Size(shape).numel() // world) for name, shape in shapes.items()}
        self.row = sum(pieces.values())
        segments: list[cc.Segment] = []
        for rank in range(world):
            at = rank * self.row
            for name, shape in shapes.items():
                numel = torch.Size(shape).numel()
                low, high = (min(numel, (rank + i) * pieces[name]) for i in (0, 1))
                if high > low:
                    segments.append(cc.Segment(name, shape, at, at + high - low, low))
                at += pieces[name]
        self.layout = cc.Layout(segments, world * self.row)

    def wanted(self, rank: int) -> cc.Layout:
        """This rank's row, as a tensor of its own."""
        return self.layout.row(self.layout.numel // self.row, rank)

    def gradient(self, rank: int, step: int) -> Tensor:
        """A function of (rank, step); padding is zero, as hosts leave it."""
        drawn = torch.randn(self.layout.numel, generator=torch.Generator().manual_seed(1000 * step + rank))
        flat = torch.zeros(self.layout.numel)
        for s in self.layout.segments:
            flat[s.start : s.stop] = drawn[s.start : s.stop]
        return flat


def opened(
    reducer: Any, shapes: dict[str, tuple[int, ...]], world: int, seconds: float = 30, rows: bool = False
) -> Session:
    made = cc.parse(reducer) if isinstance(reducer, str) else reducer
    parameters = [(name, torch.nn.Parameter(torch.empty(shape))) for name, shape in shapes.items()]
    transport = ProcessGroup.over(None, "cpu", timedelta(seconds=seconds))
    layouts = [Shards(shapes, world).layout]
    return Session(transport, Options(made, seed=7), parameters, layouts=layouts, rows=rows)


def shards(rank: int, world: int, reducer: str, steps: int, dtype: torch.dtype = torch.float32) -> Any:
    """All means of three units, one session each; sessions are ended in another order on every rank."""
    units = [Shards(shapes, world) for shapes in UNITS]
    sessions = [opened(reducer, shapes, world, rows=True) for shapes in UNITS]
    means: list[list[Tensor]] = []
    for step in range(steps):
        rows = [torch.full((unit.row,), 9.0, dtype=dtype) for unit in units]
        for session in sessions:
            session.begin_step()
        for unit, session, row in reversed(list(zip(units, sessions, rows, strict=True))):
            given = cc.Bucket(unit.gradient(rank, step).to(dtype), unit.layout)
            session.submit(Source(given), Target(cc.Bucket(row, unit.wanted(rank))), last=True)
        for i in range(len(sessions)):
            sessions[(i + rank) % len(sessions)].end_step()
        means.append(rows)
    state = [session.state.save() for session in sessions]
    sent = [session.statistics.report().bytes_sent for session in sessions]
    for session in sessions:
        session.close()
    return means, state, sent


def test_rows_of_several_sessions_are_the_dense_mean(three: Workers) -> None:
    results = three.run(shards, reducer="Exact()", steps=2)
    for rank, (means, _, _) in enumerate(results):
        for step, rows in enumerate(means):
            for row, shapes in zip(rows, UNITS, strict=True):
                unit = Shards(shapes, 3)
                dense = torch.stack([unit.gradient(r, step).double() for r in range(3)]).mean(0)
                for s in unit.wanted(rank).segments:
                    at = unit.layout.position(s)
                    torch.testing.assert_close(
                        row[s.start : s.stop].double(), dense[at : at + s.numel], rtol=1e-6, atol=1e-6
                    )


@pytest.mark.parametrize(
    "reducer",
    [
        "QSGD(bits=4, block=16, dense_below=1)",
        "ErrorFeedback(TwoPhase(SignScale(block=16, dense_below=1)))",
    ],
)
def test_coded_rows_equal_the_simulators_to_the_bit(three: Workers, reducer: str) -> None:
    results = three.run(shards, reducer=reducer, steps=3)
    for u, shapes in enumerate(UNITS):
        unit, simulator = Shards(shapes, 3), cc.Simulator(cc.parse(reducer), 3, seed=7, rows=True)
        for step in range(3):
            given = [[cc.Bucket(unit.gradient(r, step), unit.layout)] for r in range(3)]
            outs = [[cc.Bucket(torch.full((unit.row,), 9.0), unit.wanted(r))] for r in range(3)]
            simulator.step(given, outs)
            for rank, (means, _, _) in enumerate(results):
                assert torch.equal(means[step][u], outs[rank][0].flat), (rank, step, u)
        for rank, (_, state, sent) in enumerate(results):
            assert sent[u] == pytest.approx(simulator.sent[rank] / 3)
            held = state[u][f"rank {rank} of 3"]["slots"]
            for slot, entries in simulator.stores[rank].state_dict().items():
                assert all(torch.equal(held[slot][name], tensor) for name, tensor in entries.items())


def test_rows_in_half_precision_come_back_in_it(two: Workers) -> None:
    coded = "ErrorFeedback(SignScale(block=16, dense_below=1))"
    narrow = two.run(shards, reducer=coded, steps=2, dtype=torch.bfloat16)
    wide = two.run(shards, reducer=coded, steps=2)
    for (means, *_), (due, *_) in zip(narrow, wide, strict=True):
        for rows, expected in zip(means, due, strict=True):
            for row, full in zip(rows, expected, strict=True):
                assert row.dtype == torch.bfloat16
                torch.testing.assert_close(row.float(), full, rtol=0.05, atol=0.05)


def overflows(rank: int, world: int) -> Any:
    """The mean of rank 0's row does not fit float16; rank 1's does."""
    shapes = {"w": (64, 8)}
    unit, session = (
        Shards(shapes, world),
        opened("ErrorFeedback(SignScale(block=16, dense_below=1))", shapes, world, rows=True),
    )
    flat, told = torch.ones(unit.layout.numel), []
    for scale in (1.0, 70000.0):
        flat = torch.ones(unit.layout.numel, dtype=torch.float32)
        flat[: unit.row] = scale
        before = {n: t.clone() for n, t in session.setup.store.state_dict()["residual"].items()}
        row = torch.zeros(unit.row, dtype=torch.float16)
        session.begin_step()
        session.submit(cc.Bucket(flat, unit.layout), cc.Bucket(row, unit.wanted(rank)))
        step = session.end_step()
        assert step is not None
        after = session.setup.store.state_dict()["residual"]
        kept = sum(float((after[n] - before[n]).abs().sum()) for n in before)
        told.append((bool(row.isinf().any()), step.bad, kept))
    session.close()
    return told


def test_a_row_that_does_not_fit_is_a_bad_step_on_every_rank(two: Workers) -> None:
    mine, other = two.run(overflows)
    assert [found[0] for found in mine] == [False, True]
    assert not any(found[0] for found in other), "this test wants an overflow in one row"
    assert [found[1] for found in mine] == [found[1] for found in other] == [False, True]
    assert mine[1][2] == other[1][2] == 256 * 70000.0 + 256, "memory has all of the gradient again"


def at_once(rank: int, world: int) -> Any:
    """Means that the host waits for one by one, with more buckets to come; in place, and whole."""
    session = opened("TwoPhase(QSGD(bits=4, block=16, dense_below=1))", UNITS[0], world)
    layout = cc.Layout.of(UNITS[0].items())
    found: list[Tensor] = []
    session.begin_step()
    for bucket in range(3):
        flat = torch.full((layout.numel,), float(rank + bucket))
        future = session.submit(cc.Bucket(flat, layout), now=True)
        found.append(future.wait().clone())
        assert session.steps.open
    session.end_step()
    numbers = session.step
    session.close()
    return found, numbers


def test_a_mean_that_the_host_waits_for(two: Workers) -> None:
    for found, steps in two.run(at_once):
        assert steps == 1
        for bucket, mean in enumerate(found):
            torch.testing.assert_close(mean, torch.full_like(mean, bucket + 0.5), rtol=0.1, atol=0.1)


class Fails(cc.SignScale):
    def encode_rows(self, i: Any, gain: Any, rng: Any, hints: Any, find: Any) -> None:
        if rng.rank == 1 and rng.step == 1:
            raise ArithmeticError("made to fail")
        super().encode_rows(i, gain, rng, hints, find)


def failing(rank: int, world: int) -> Any:
    """Rank 1's kernel raises between begin and end of the second step."""
    session = opened(cc.ErrorFeedback(Fails(block=16, dense_below=1)), UNITS[1], world, rows=True)
    unit = Shards(UNITS[1], world)

    def step(number: int) -> Tensor:
        row = torch.zeros(unit.row)
        session.begin_step()
        session.submit(cc.Bucket(unit.gradient(rank, number), unit.layout), cc.Bucket(row, unit.wanted(rank)))
        try:
            session.end_step()
        finally:
            rows.append(row)
        return row

    rows: list[Tensor] = []
    step(0)
    first = models.caught(lambda: step(1))
    second = models.caught(session.begin_step)
    session.close()
    return first, second, [bool(row[: unit.wanted(rank).segments[0].numel].isnan().all()) for row in rows]


def test_a_rank_that_fails_between_begin_and_end(three: Workers) -> None:
    for rank, (first, second, nan) in enumerate(three.run(failing)):
        assert first[0] == ("ArithmeticError" if rank == 1 else "PeerError"), first
        assert ("made to fail" if rank == 1 else "rank 1 failed in step 1, bucket 0") in first[1]
        assert second[0] == "RuntimeError" and "broke in step 1" in second[1]
        assert nan == [False, True]


def abandoning(rank: int, world: int) -> Any:
    """A pass that raises on every rank after its first bucket: memory holds what it put in, and training goes on."""
    session = opened("ErrorFeedback(TwoPhase(SignScale(block=16, dense_below=1), server=False))", UNITS[1], world)
    unit = Shards(UNITS[1], world)
    session.begin_step()
    session.submit(cc.Bucket(unit.gradient(rank, 0), unit.layout))
    session.abandon_step()
    session.abandon_step()  # there is none: nothing happens
    held = session.state.save()[f"rank {rank} of {world}"]["slots"]["residual"]
    off = max(
        float((held[key] - unit.gradient(rank, 0)[s.start : s.stop]).abs().max())
        for s in unit.layout.segments
        for key in held
        if key == (s.name if s.whole else f"{s.name}@{s.offset}")
    )
    session.begin_step()
    session.submit(cc.Bucket(unit.gradient(rank, 1), unit.layout))
    session.end_step()
    session.close()
    return off, len(held)


def test_a_step_that_is_given_up_on_every_rank(two: Workers) -> None:
    for off, entries in two.run(abandoning):
        assert entries == 2 and off < 1e-6


def dying(rank: int, world: int) -> Any:
    session = opened("Exact()", UNITS[1], world, seconds=5)
    session.begin_step()
    if rank == 1:
        os._exit(3)
    layout = cc.Layout.of(UNITS[1].items())
    session.submit(cc.Bucket(torch.ones(layout.numel), layout))
    told = models.caught(session.end_step)
    return told, models.caught(session.begin_step)


def test_a_peer_that_dies_between_begin_and_end() -> None:
    workers = Workers(2)
    (told, after), _ = workers.run(dying, dead=(1,), timeout=150)
    assert told[0] == "TransportError" and "a peer has died" in told[1]
    assert after[0] == "RuntimeError" and "Restart from a checkpoint" in after[1]
