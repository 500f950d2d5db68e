"""Squeeze and spread: kernels equal the reference, spread undoes squeeze, and a peer's lengths are never trusted."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compcomm.ops import native
from tests.ops.sparse_case import IMPLEMENTATIONS, using

OPS = torch.ops.compcomm
COMPILED = native.isas()[-1:]
U8 = torch.uint8


@dataclass
class Case:
    """Messages with gaps between them, and how their sections are used (in words of four bytes)."""

    wire: Tensor
    table: Tensor
    spans: Tensor
    body: list[Tensor]

    @property
    def bodies(self) -> Tensor:
        return torch.cat(self.body)

    @property
    def places(self) -> Tensor:
        sizes = torch.tensor([b.numel() for b in self.body])
        return torch.stack((sizes.cumsum(0) - sizes, sizes), 1)


def make(messages: list[list[tuple[int, int]]], exact: int = 12, before: int = 8, seed: int = 0) -> Case:
    """``messages``: (capacity, used) of each section, in words; ``before``: bytes in front of each body."""
    g = torch.Generator().manual_seed(seed)
    parts, rows, spans, body, at = [], [], [], [], 0
    for sections in messages:
        parts.append(torch.full((before,), 0xEE, dtype=U8))
        first = at + before
        kept = [torch.randint(256, (exact,), generator=g, dtype=U8)]
        at = first + exact
        parts.append(kept[0])
        for capacity, used in sections:
            section = torch.randint(256, (4 * used,), generator=g, dtype=U8)
            section[:4] = torch.tensor([4 * used], dtype=torch.int32).view(U8)
            kept.append(section)
            parts += [section, torch.zeros(4 * (capacity - used), dtype=U8)]
            rows.append([0, -1, 1, at, 0, 0, 0, 0])
            at += 4 * capacity
        spans.append([first, first + exact, at, len(sections)])
        body.append(torch.cat(kept))
    table = torch.tensor(rows, dtype=torch.int64).view(-1, 8)
    return Case(torch.cat(parts), table, torch.tensor(spans).view(-1, 4), body)


SECTIONS = st.integers(1, 9).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c)))
MESSAGES = st.lists(st.lists(SECTIONS, max_size=4), min_size=1, max_size=4)
TYPICAL = [[(5, 5), (9, 2)], [], [(1, 1)], [(300, 7), (3, 3), (2, 1)]]


def compact(name: str, c: Case) -> tuple[Tensor, Tensor]:
    """The bodies, and their sizes; what lies around them is not written."""
    total = c.bodies.numel()
    out, sizes = torch.full((total + 8,), 0xA5, dtype=U8), torch.full((len(c.spans),), -1)
    with using(name):
        OPS.compact(c.wire, c.table, c.spans, out[: total + 4], sizes)
    assert (out[total:] == 0xA5).all()
    return out[:total], sizes


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_there_and_back(name: str) -> None:
    for messages in (TYPICAL, [[]], [[(1, 1)]], [[(2, 1)] * 50]):
        for exact, before in ((12, 8), (0, 0), (3, 1)):
            c = make(messages, exact, before)
            bodies, sizes = compact(name, c)
            assert torch.equal(bodies, c.bodies) and sizes.tolist() == c.places[:, 1].tolist()
            wires = torch.full_like(c.wire, 0xEE)
            with using(name):
                OPS.scatter(bodies, c.places, c.table, c.spans, wires)
            assert torch.equal(wires, c.wire)


@given(MESSAGES, st.integers(0, 3), st.data())
def test_any_bytes_are_safe(messages: list[list[tuple[int, int]]], changes: int, data: st.DataObject) -> None:
    """Kernel and reference take and refuse the same bodies, write the same, and nothing where one is refused."""
    c = make(messages)
    bodies, places = c.bodies, c.places
    for _ in range(changes):
        if data.draw(st.booleans()):
            bodies[data.draw(st.integers(0, bodies.numel() - 1))] = data.draw(st.sampled_from((0, 4, 8, 12, 255, 128)))
        else:
            m, by = data.draw(st.integers(0, len(places) - 1)), data.draw(st.sampled_from((-4, -1, 4, 16)))
            places[m, data.draw(st.integers(0, 1))] += by
    found = []
    for name in ("reference", *COMPILED):
        around = torch.full((c.wire.numel() + 64,), 0xA5, dtype=U8)
        error = ""
        with using(name):
            try:
                OPS.scatter(bodies, places, c.table, c.spans, around[32:-32])
            except (RuntimeError, ValueError) as e:
                error = str(e)
                assert (around == 0xA5).all() and ("message" in error or "places row" in error)
                assert "report" not in error, "the reference did not explain what the kernel refused"
        assert (around[:32] == 0xA5).all() and (around[-32:] == 0xA5).all()
        found.append((around, error))
    assert all(torch.equal(a, found[0][0]) and e == found[0][1] for a, e in found)
    assert changes or not found[0][1]


@given(MESSAGES, st.sampled_from(("table", "spans")), st.integers(-(2**63), 2**63 - 1) | st.integers(-4, 60), st.data())
def test_any_layout_is_safe(messages: list[list[tuple[int, int]]], which: str, value: int, data: st.DataObject) -> None:
    """One wild number in the table or the spans: kernel and reference agree whether it can be meant."""
    c = make(messages)
    tensor = getattr(c, which)
    if not tensor.numel():
        return
    column = 3 if which == "table" else data.draw(st.integers(0, 3))
    tensor[data.draw(st.integers(0, len(tensor) - 1)), column] = value
    found = []
    for name in ("reference", *COMPILED):
        wires, out = (torch.full((n + 64,), 0xA5, dtype=U8) for n in (c.wire.numel(), c.bodies.numel()))
        sizes, errors = torch.full((len(c.spans),), -1), []
        for op, args in (
            (OPS.scatter, (c.bodies, c.places, c.table, c.spans, wires[32:-32])),
            (OPS.compact, (c.wire, c.table, c.spans, out[32:-32], sizes)),
        ):
            with using(name):
                try:
                    op(*args)
                    errors.append("")
                except (RuntimeError, ValueError) as e:
                    errors.append(str(e))
                    assert "report" not in errors[-1]
        assert all((t[:32] == 0xA5).all() and (t[-32:] == 0xA5).all() for t in (wires, out))
        found.append((wires, out, sizes, errors))
    for got in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(got[:3], found[0][:3], strict=True)) and got[3] == found[0][3]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("length", [0, 3, 5, 6, 40, 0x80000000, 0xFFFFFFFC])
def test_a_corrupt_length_names_the_message_and_the_row(name: str, length: int) -> None:
    c = make(TYPICAL)
    word = torch.tensor([length], dtype=torch.int64).view(U8)[:4]
    bodies, wires = c.bodies, torch.full_like(c.wire, 0xA5)
    at = int(c.places[3, 0]) + 12 + 28
    bodies[at : at + 4] = word
    with using(name), pytest.raises(RuntimeError, match=r"compcomm.scatter: message 3, table row 4: .*corrupt"):
        OPS.scatter(bodies, c.places, c.table, c.spans, wires)
    assert (wires == 0xA5).all()
    at = int(c.table[4, 3])
    c.wire[at : at + 4] = word
    out, sizes = torch.full_like(bodies, 0xA5), torch.zeros(4, dtype=torch.int64)
    with using(name), pytest.raises(RuntimeError, match=r"compcomm.compact: message 3, table row 4: .*corrupt"):
        OPS.compact(c.wire, c.table, c.spans, out, sizes)
    assert (out == 0xA5).all() and not sizes.any()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize(("by", "reason"), [(4, "left over"), (-4, "0 are there"), (-48, "exact part")])
def test_a_body_of_another_size_is_corrupt(name: str, by: int, reason: str) -> None:
    c = make(TYPICAL)
    places, bodies = c.places, torch.nn.functional.pad(c.bodies, (0, 8))
    places[3, 1] += by
    with using(name), pytest.raises(RuntimeError, match=rf"compcomm.scatter: message 3, table row 5: .*{reason}"):
        OPS.scatter(bodies, places, c.table, c.spans, torch.zeros_like(c.wire))


@pytest.mark.parametrize("name", ["reference", *COMPILED])
def test_arguments(name: str) -> None:
    c, sizes = make(TYPICAL), torch.zeros(4, dtype=torch.int64)
    out, wires, places = torch.zeros_like(c.wire), torch.zeros_like(c.wire), c.places
    with using(name):
        for bad, error in (
            ((c.wire.float(), c.table, c.spans, out, sizes), "wire is torch.float32"),
            ((c.wire, c.table.int(), c.spans, out, sizes), "table is torch.int32"),
            ((c.wire, c.table, c.spans.view(-1, 2), out, sizes), r"spans .* \[rows, 4\]"),
            ((c.wire, c.table, c.spans, out[::2], sizes), "out has shape"),
            ((c.wire, c.table, c.spans, out, sizes.int()), "sizes is torch.int32"),
            ((c.wire, c.table, c.spans, out, sizes[:3]), "sizes has 3 elements, but needs 4"),
            ((c.wire, c.table, c.spans, out[: c.bodies.numel() - 1], sizes), "the bodies take"),
            ((c.wire, c.table[:-1], c.spans, out, sizes), "3 rows, but the table has 2 left"),
            ((c.wire, c.table, c.spans[:-1].contiguous(), out, sizes[:-1]), "names 3 rows, but the table has 6"),
            ((c.wire[:-4], c.table, c.spans, out, sizes), "must lie inside wire"),
        ):
            with pytest.raises((TypeError, ValueError), match=f"compcomm.compact: .*{error}"):
                OPS.compact(*bad)
        for bad, error in (
            ((c.bodies.int(), places, c.table, c.spans, wires), "bodies is torch.int32"),
            ((c.bodies, places[:2], c.table, c.spans, wires), "places has 2 rows, but needs 4"),
            ((c.bodies, places.view(-1), c.table, c.spans, wires), r"places .* \[rows, 2\]"),
            ((c.bodies[:-1], places, c.table, c.spans, wires), r"places row 3 .* outside bodies"),
            ((c.bodies, places, c.table, c.spans, wires[:-4]), "must lie inside wires"),
        ):
            with pytest.raises((TypeError, ValueError), match=f"compcomm.scatter: .*{error}"):
                OPS.scatter(*bad)
