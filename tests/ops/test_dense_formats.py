"""Dense, cast, qsgd, sign: every instruction set answers to the reference bit for bit, and writes only its rows."""

from __future__ import annotations

import pytest
import torch

from compcomm.ops import native
from tests.ops.dense_case import FORMATS, GAP, Format, case, decode, encode, gaps, same
from tests.ops.sparse_case import KINDS

BACKENDS = ("reference", *native.isas())
SCALES = {"zero": (1.0, 1.0), "huge": (1.0, 1.0), "nonfinite": (0.9, 1.0)}  # else: both differ from one


@pytest.mark.turns(2)
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_encode_equals_the_reference(form: Format) -> None:
    for seed, kind in enumerate(KINDS):
        c = case(form, kind, seed=seed)
        decay, add_scale = SCALES.get(kind, (0.75, 1.3))
        expected = encode("reference", form, c, decay, add_scale)
        assert torch.isfinite(expected["x"]).all()
        for isa in native.isas():
            found = encode(isa, form, c, decay, add_scale)
            for name, tensor in expected.items():
                assert same(found[name], tensor), (form, kind, isa, name)


@pytest.mark.parametrize("form", FORMATS[:9], ids=str)
def test_encode_without_add_equals_the_reference(form: Format) -> None:
    for kind in ("normal", "nonfinite", "denormal"):
        c = case(form, kind)
        c.x.copy_(c.add)  # the gradient itself is the buffer
        expected = encode("reference", form, c, 0.5, 1.0, add=False)
        for isa in native.isas():
            found = encode(isa, form, c, 0.5, 1.0, add=False)
            assert all(same(found[name], tensor) for name, tensor in expected.items()), (form, kind, isa)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_encode_writes_only_its_rows(form: Format, backend: str) -> None:
    c = case(form)
    found = encode(backend, form, c)
    rows = c.table.tolist()
    outside = gaps([(r[0], r[2]) for r in rows], c.x.numel())
    assert same(found["x"][outside], c.x[outside])
    outside = gaps([(r[3], form.section(r[2])) for r in rows], c.nbytes)
    assert (found["wire"][outside] == 0xA5).all()


@pytest.mark.turns(2, first=1)
@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_decode_equals_the_reference(form: Format) -> None:
    """W = 1..5 and 9 messages in strided buffers, added or written, with skipped and absent rows."""
    c = case(form)
    wires = torch.full((9, c.nbytes + 5), 0x5A, dtype=torch.uint8)[:, 3:-2]
    for rank in range(9):
        wires[rank] = encode("reference", form, case(form, seed=rank % 3), rank=rank)["wire"]
    c.table[3, 0] = -1
    skip = torch.tensor([0, 1, 0, 0, 0], dtype=torch.uint8)
    rows = [(r[0], r[2]) for r in c.table.tolist() if r[0] >= 0]
    outside = gaps(rows, c.x.numel())
    poisoned = torch.where(outside, torch.nan, c.add)
    for messages, accumulate in ((1, False), (1, True), (2, True), (3, False), (4, True), (5, False), (9, True)):
        arguments = (wires[:messages], poisoned, 0.3, accumulate, skip)
        expected = decode("reference", form, c, *arguments)
        assert expected[outside].isnan().all() and not expected[~outside].isnan().any()
        for isa in native.isas():
            assert same(decode(isa, form, c, *arguments), expected), (form, messages, accumulate, isa)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_residual_and_payload_make_the_input(form: Format, backend: str) -> None:
    """x after = y - decoded, exactly: what is not sent stays."""
    c = case(form)
    left = encode(backend, form, c, 0.5, 2.0)
    skip = torch.zeros(5, dtype=torch.uint8)
    sent = decode(backend, form, c, left["wire"].unsqueeze(0), torch.zeros_like(c.x), 1.0, False, skip)
    for start, add, n in c.table[:, :3].tolist():
        y = c.x[start : start + n] * 0.5
        y = y + c.add[add : add + n] * 2.0 if add >= 0 else y
        assert same(left["x"][start : start + n], y - sent[start : start + n])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", [f for f in FORMATS if f.stochastic and f.block % 16 == 0], ids=str)
def test_a_row_may_be_cut_at_any_block(form: Format, backend: str) -> None:
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
    a, b = encode(backend, form, whole)["x"], encode(backend, form, halves)["x"]
    assert same(a[GAP : GAP + cut], b[GAP : GAP + cut])
    assert same(a[GAP + cut : GAP + n], b[GAP + cut + GAP : GAP + n + GAP])
    other = encode(backend, form, whole, rank=2)["x"]
    assert not same(a, other), "each rank must draw its own noise"
    assert not same(a, encode(backend, form, whole, step=4)["x"]), "each step must draw new noise"
