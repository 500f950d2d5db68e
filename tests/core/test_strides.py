"""The order of a parameter in memory, and the way to row-major and back."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc
from compcomm.core.strides import shaped, storage_order, turned
from compcomm.ops import backend, native


def stored(shape: tuple[int, ...], order: tuple[int, ...]) -> torch.Tensor:
    """Zeros that lie in that order."""
    return torch.zeros([shape[d] for d in order]).permute([order.index(d) for d in range(len(shape))])


@pytest.mark.parametrize("order", [p for n in (1, 2, 3, 4) for p in permutations(range(n))])
def test_an_order_is_found(order: tuple[int, ...]) -> None:
    shape = (2, 3, 5, 7)[: len(order)]
    found = storage_order(stored(shape, order))
    assert found == (() if order == tuple(range(len(order))) else order)


def test_dimensions_of_one_element_have_no_place() -> None:
    assert storage_order(torch.zeros(1, 8, 1).transpose(0, 1)) == ()
    assert storage_order(torch.zeros(4, 8, 1, 1).to(memory_format=torch.channels_last)) == ()
    assert storage_order(torch.zeros(3, 1, 5).permute(2, 1, 0)) == (2, 1, 0)


def test_what_has_gaps_is_copied_row_major() -> None:
    for t in (torch.zeros(6, 8)[:, ::2], torch.zeros(6, 1).expand(6, 4), torch.zeros(8, 6)[::2].t()):
        assert storage_order(t) == ()


@pytest.mark.parametrize("isa", [*native.isas(), "reference"])
@given(data=st.data())
def test_there_and_back(isa: str, data: st.DataObject) -> None:
    """Every permutation of up to four dimensions, several parameters in one bucket, some of them row-major, padding."""
    with backend("reference" if isa == "reference" else "native"):
        if isa != "reference":
            native.set_isa(isa)
        segments, start = [], data.draw(st.integers(0, 2))
        for i in range(data.draw(st.integers(1, 4))):
            shape = tuple(data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4)))
            order = tuple(data.draw(st.permutations(range(len(shape)))))
            order = storage_order(stored(shape, order))
            numel = stored(shape, order or tuple(range(len(shape)))).numel()
            segments.append(cc.Segment(f"w{i}", shape, start, start + numel, 0, order))
            start += numel + data.draw(st.integers(0, 1))
        layout = cc.Layout(segments, start + 1)
        given_, there, back = (cc.Bucket(torch.zeros(layout.numel), ly) for ly in (layout, layout.row_major, layout))
        given_.flat.copy_(torch.arange(layout.numel))
        there.rearrange_(given_)
        for s, t in zip(layout.segments, layout.row_major.segments, strict=True):
            assert torch.equal(there.flat[t.start : t.stop], given_.view(s).reshape(-1))
            assert there.view(t).is_contiguous() and given_.view(s).shape == s.shape
        back.rearrange_(there)
        assert torch.equal(back.flat, given_.flat)
        half = cc.Bucket(torch.zeros(layout.numel, dtype=torch.bfloat16), layout)
        half.rearrange_(there)
        assert torch.equal(half.flat, given_.flat.bfloat16())
        if isa != "reference":
            native.set_isa(native.isas()[-1])


def test_which_orders_are_matrices_transposed() -> None:
    assert turned((8, 4, 3, 3), (0, 2, 3, 1)) == (8, 9, 4)
    assert turned((8, 4), (1, 0)) == (1, 4, 8)
    assert turned((2, 3, 5, 7), (0, 1, 3, 2)) == (6, 7, 5)
    assert turned((2, 3, 5), (2, 1, 0)) is None
    flat = torch.arange(24.0)
    assert torch.equal(shaped(flat, (4, 6), (1, 0)), flat.view(6, 4).t())
