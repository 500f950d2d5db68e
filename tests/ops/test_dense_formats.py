"""Formats that send every element: instruction sets answer to the reference bit for bit, and write only their rows.

Every row of a call has another kind of numbers, and which row has which goes round from call to call, and from format
to format.
"""

from __future__ import annotations

import pytest
import torch

from compcomm.ops import native
from tests.ops.dense_case import FORMATS, GAP, Case, Form, case, decode, encode, gaps, same
from tests.ops.sparse_case import KINDS, rows_of_kinds

LAST = native.isas()[-1] if native.available() else "reference"
NUMBER = {str(form): number for number, form in enumerate(FORMATS)}
MESSAGES = ((2, True), (3, False), (4, True), (9, True), (1, True))  # how many, and whether they are added


def mixed(form: Form, turn: int) -> Case:
    c, first = case(form), NUMBER[str(form)] + 3 * turn
    x, add = rows_of_kinds(c.table, KINDS[first % len(KINDS) :] + KINDS[: first % len(KINDS)], turn)
    return c._replace(x=x, add=add)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_encode(form: Form) -> None:
    """With a gradient beside what was left, and where what is given is the gradient itself."""
    for turn, (decay, add_scale, add) in enumerate(((0.75, 1.3, True), (1.0, 1.0, True), (0.9, 1.0, False))):
        c = mixed(form, turn)
        expected = encode("reference", form, c, decay, add_scale, add)
        assert torch.isfinite(expected["x"]).all()
        for isa in native.isas():
            found = encode(isa, form, c, decay, add_scale, add)
            for name, tensor in expected.items():
                assert same(found[name], tensor), (form, turn, isa, name)
    rows = c.table.tolist()
    outside = gaps([(r[0], r[2]) for r in rows], c.x.numel())
    assert same(expected["x"][outside], c.x[outside])
    outside = gaps([(r[3], form.section(r[2])) for r in rows], c.nbytes)
    assert (expected["wire"][outside] == 0xA5).all()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_decode(form: Form) -> None:
    """Messages in strided buffers, added or written, with skipped and absent rows."""
    c = case(form)
    wires = torch.full((9, c.nbytes + 5), 0x5A, dtype=torch.uint8)[:, 3:-2]
    for rank in range(3):
        wires[rank::3] = encode("reference", form, case(form, seed=rank), rank=rank)["wire"]
    c.table[3, 0] = -1
    skip = torch.tensor([0, 1, 0, 0, 0], dtype=torch.uint8)
    outside = gaps([(r[0], r[2]) for r in c.table.tolist() if r[0] >= 0], c.x.numel())
    poisoned = torch.where(outside, torch.nan, c.add)
    for messages, accumulate in ((1, False), (5, True), MESSAGES[NUMBER[str(form)] % len(MESSAGES)]):
        arguments = (wires[:messages], poisoned, 0.3, accumulate, skip)
        expected = decode("reference", form, c, *arguments)
        assert expected[outside].isnan().all() and not expected[~outside].isnan().any()
        for isa in native.isas():
            assert same(decode(isa, form, c, *arguments), expected), (form, messages, accumulate, isa)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_residual_and_payload_make_the_input(form: Form) -> None:
    """x after = y - decoded, exactly: what is not sent stays."""
    c = case(form)
    left = encode("reference", form, c, 0.5, 2.0)
    skip = torch.zeros(5, dtype=torch.uint8)
    sent = decode("reference", form, c, left["wire"].unsqueeze(0), torch.zeros_like(c.x), 1.0, False, skip)
    for start, add, n in c.table[:, :3].tolist():
        y = c.x[start : start + n] * 0.5
        y = y + c.add[add : add + n] * 2.0 if add >= 0 else y
        assert same(left["x"][start : start + n], y - sent[start : start + n])


@pytest.mark.parametrize("form", [f for f in FORMATS if f.stochastic and f.block % 16 == 0], ids=str)
def test_a_row_may_be_cut_at_any_block(form: Form) -> None:
    """Two rows with the right offsets send the codes of the whole: dithers belong to the parameter, not to the row."""
    n, cut, first = 5 * form.block + 9, 2 * form.block, 2**35 - 117  # the counter's first word wraps inside
    whole = case(form, sizes=(n,))
    halves = case(form, sizes=(cut, n - cut))
    for c in (whole, halves):
        c.table[:, 5], c.table[:, 4], c.table[:, 1] = 99, first, -1
        c.gain.fill_(1.0)
    halves.table[1, 4] = first + cut
    halves.x[GAP : GAP + cut] = whole.x[GAP : GAP + cut]
    halves.x[GAP + cut + GAP : GAP + n + GAP] = whole.x[GAP + cut : GAP + n]
    due = encode("reference", form, whole)["x"]
    for backend in native.isas() or ("reference",):
        found = encode(backend, form, halves)["x"]
        assert same(encode(backend, form, whole)["x"], due) and same(found[GAP : GAP + cut], due[GAP : GAP + cut])
        assert same(found[GAP + cut + GAP : GAP + n + GAP], due[GAP + cut : GAP + n])
    assert not same(due, encode(LAST, form, whole, rank=2)["x"]), "each rank must draw its own noise"
    assert not same(due, encode(LAST, form, whole, step=4)["x"]), "each step must draw new noise"
