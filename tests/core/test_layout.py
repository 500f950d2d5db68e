"""Layouts say where things are, and shares and rows cut them without gap or overlap."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compcomm import Bucket, Layout, Segment


@given(st.integers(0, 5000), st.integers(1, 9), st.sampled_from([1, 16, 512]), st.integers(0, 100))
def test_shares_cover_a_segment_once(numel: int, world: int, grain: int, start: int) -> None:
    segment = Segment("w", (1, 7 + numel), start, start + numel, 7)
    shares = [segment.share(r, world, grain) for r in range(world)]
    position = start
    for share in shares:
        assert share.start == position and share.stop >= position
        assert share.offset - 7 == share.start - start
        assert (share.start - start) % grain == 0 or share.numel == 0
        position = share.stop
    assert position == start + numel
    blocks = [-(-s.numel // grain) for s in shares]
    assert max(blocks) - min(blocks) <= 1, "owners differ by one block at most"


def test_shares_by_hand() -> None:
    """5 blocks of 16 among 3 ranks: floor(r*5/3) is 0, 1, 3, 5."""
    segment = Segment("w", (70,), 0, 70)
    assert [(s.start, s.stop) for s in (segment.share(r, 3, 16) for r in range(3))] == [(0, 16), (16, 48), (48, 70)]


def test_views_alias_the_buffer_and_have_the_shapes() -> None:
    layout = Layout([Segment("a", (2, 3), 1, 7), Segment("b", (10,), 8, 11, 4), Segment("c", (), 11, 12)], 13)
    bucket = Bucket(torch.arange(13.0), layout)
    views = bucket.views()
    assert {n: tuple(v.shape) for n, v in views.items()} == {"a": (2, 3), "b": (3,), "c": ()}
    views["a"][1, 2] = 60.0
    assert bucket.flat[6] == 60.0
    bucket.fill_(-1.0)
    assert bucket.flat.tolist() == [0.0, *[-1.0] * 6, 7.0, *[-1.0] * 4, 12.0], "padding keeps its content"


def test_position_finds_what_is_there() -> None:
    layout = Layout([Segment("a", (40,), 5, 15, 10), Segment("a", (40,), 20, 30, 30), Segment("b", (4,), 0, 4)])
    assert layout.position(Segment("a", (40,), 0, 3, 12)) == 7
    assert layout.position(Segment("a", (40,), 0, 10, 30)) == 20
    assert layout.position(Segment("a", (40,), 0, 3, 18)) == -1, "it ends in another place"
    assert layout.position(Segment("a", (40,), 0, 3, 0)) == -1
    assert layout.position(Segment("none", (4,), 0, 4)) == -1


def test_covers_packed_and_select() -> None:
    layout = Layout.of([("a", (2, 3)), ("b", ()), ("c", (0, 5)), ("d", (4,))])
    assert layout.numel == 11 and layout.covers
    some = layout.select(lambda s: s.name in "bd")
    assert some.numel == 11 and not some.covers
    packed = some.packed()
    assert packed.covers and [(s.name, s.start, s.stop) for s in packed.segments] == [("b", 0, 1), ("d", 1, 5)]
    assert not Layout([Segment("a", (3,), 0, 3)], 4).covers


def test_layouts_are_values() -> None:
    a, b = (Layout.of([("a", (2, 3)), ("b", (4,))]) for _ in range(2))
    assert a == b and hash(a) == hash(b) and {a: 1}[b] == 1
    assert a != Layout.of([("a", (3, 2)), ("b", (4,))]) and a != Layout.of([("b", (4,)), ("a", (2, 3))])
    assert a != Layout(a.segments, 11) and a != "a"


def test_rows_of_a_sharded_buffer() -> None:
    segments = [
        Segment("a", (8,), 0, 4),
        Segment("b", (3,), 4, 5),
        Segment("a", (8,), 6, 10, 4),
        Segment("b", (3,), 10, 12, 1),
    ]
    rows = Layout(segments, 12).rows(2)
    assert rows is not None
    assert [[(s.name, s.offset) for s in r.segments] for r in rows] == [[("a", 0), ("b", 0)], [("a", 4), ("b", 1)]]
    assert Layout(segments, 12).rows(3) is None, "a segment crosses a row"
    assert Layout(segments, 13).rows(2) is None, "the rows are not equal"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layout([Segment("a", (4,), 0, 4)], 3), "ends at element 4, beyond"),
        (lambda: Layout([Segment("a", (4,), 0, 5)]), "does not fit its parameter of 4"),
        (lambda: Layout([Segment("a", (4,), 3, 2)]), "does not fit"),
        (lambda: Layout([Segment("a", (4,), 0, 2, 3)]), "does not fit"),
        (lambda: Layout([Segment("a", (4,), 0, 2, -1)]), "does not fit"),
    ],
)
def test_impossible_layouts_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_equal_layouts_are_one_object_also_after_a_copy() -> None:
    one = Layout.of([("w", (3, 4)), ("b", (4,))])
    assert Layout(one.segments, 16) is one and one.packed() is one
    assert copy.deepcopy(one) is one and pickle.loads(pickle.dumps(one)) is one
    assert Layout(one.segments, 17) is not one and Layout(one.segments, 17) != one
    with pytest.raises(ValueError, match="beyond the buffer"):
        Layout(one.segments, 15)
    with pytest.raises(ValueError, match="beyond the buffer"):  # what was refused is not kept
        Layout(one.segments, 15)


def test_layouts_that_nobody_has_are_let_go() -> None:
    segments = Layout.of([("only here", (3, 4))]).segments
    gc.collect()
    assert (segments, 12) not in Layout._known


def test_views_do_not_lose_a_piece() -> None:
    pieces = Layout([Segment("w", (8,), 0, 4), Segment("w", (8,), 4, 8, 4)])
    with pytest.raises(ValueError, match=r"'w' has several pieces here. Use view\(segment\)"):
        Bucket(torch.zeros(8), pieces).views()


@pytest.mark.parametrize("shapes", [torch.nn.Linear(2, 2), {"w": (3, 4)}, ["w"], 7])
def test_what_is_no_list_of_shapes_is_refused(shapes: object) -> None:
    with pytest.raises(TypeError, match=r"Layout\.of\(.*\): pairs of a name and a shape"):
        Layout.of(shapes)  # type: ignore[arg-type]


def test_a_layout_made_in_the_middle_of_another() -> None:
    """As by a signal's handler that saves a checkpoint: nothing waits for itself."""

    class Meddling(int):
        def __lt__(self, other: object) -> bool:
            Layout.of([("made meanwhile", (5,))])
            return int.__lt__(self, other)  # type: ignore[operator]

    segment = Segment("w", (4,), 0, Meddling(4))
    assert Layout([segment, Segment("v", (4,), 4, 8)]).numel == 8


@pytest.mark.parametrize("segment", [Segment("f", (4.0,), 0, 4), Segment("f", (4,), 0.0, 4), Segment("f", [4], 0, 4)])  # type: ignore[arg-type]
def test_places_are_integers(segment: Segment) -> None:
    with pytest.raises(TypeError, match="integers"):
        Layout([segment])
