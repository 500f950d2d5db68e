"""Which rows are zero: C++ and Triton against the reference, and the reference against a loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compcomm.ops import backend, native

OPS = torch.ops.compcomm


def expected(x: torch.Tensor, numel: int, lead: int, width: int) -> list[bool]:
    return [not x[max(0, j * width - lead) : (j + 1) * width - lead].any() for j in range(-(-(lead + numel) // width))]


@pytest.mark.parametrize("isa", native.isas() or ("reference",))
@given(data=st.data())
def test_bits_and_zeros(isa: str, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 150))
    lead, numel = data.draw(st.integers(0, width - 1)), data.draw(st.integers(1, 900))
    here = data.draw(st.integers(0, 3))
    x = torch.zeros(numel + 4)
    for place in data.draw(st.lists(st.integers(0, numel - 1), max_size=6)):
        x[here + place] = data.draw(st.sampled_from([1.0, -1e-45, float("nan"), -0.0]))
    due = expected(x[here : here + numel], numel, lead, width)
    table = torch.tensor([[here, -1, numel, 4, lead, 0, width, 0]])
    bits = torch.full((4 + 4 * -(-len(due) // 32) + 1,), 255, dtype=torch.uint8)
    if isa in native.isas():
        native.set_isa(isa)
    with backend("native" if isa in native.isas() else "reference"):
        OPS.zero_rows_mark(x, None, bits, table)
        found = [bool(bits[4 + j // 8] >> (j % 8) & 1) for j in range(len(due))]
        assert found == due and bits[0] == bits[3] == bits[-1] == 255, "bits are right, and nothing else is touched"
        assert not (bits[4:-1].numpy().astype(int).sum() and not any(due)), "bits beyond the rows are zero"
        marked = torch.ones(numel + 4)
        OPS.zero_rows_clear(marked, bits, table)
    rows = [(lead + i) // width for i in range(numel)]
    assert marked[here : here + numel].tolist() == [0.0 if due[j] else 1.0 for j in rows]
    assert marked[:here].all() and marked[here + numel :].all()
    if isa in native.isas():
        native.set_isa(native.isas()[-1])


def test_lines_that_do_not_fit_are_refused() -> None:
    x, bits = torch.zeros(100), torch.zeros(8, dtype=torch.uint8)
    for line in ([0, -1, 101, 0, 0, 0, 10, 0], [0, -1, 100, 8, 0, 0, 10, 0], [0, -1, 100, 0, 10, 0, 10, 0],
                 [0, -1, 100, 0, 0, 0, 0, 0], [0, -1, 100, -4, 0, 0, 10, 0]):  # fmt: skip
        for call in (lambda t: OPS.zero_rows_mark(x, None, bits, t), lambda t: OPS.zero_rows_clear(x, bits, t)):
            with pytest.raises(ValueError, match="line 0 of the table"):
                call(torch.tensor([line]))
