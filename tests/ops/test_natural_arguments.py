"""Wrong arguments of Natural and its ops: refused, with the call, the value, the reason and the cure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.ops import native
from tests.ops.dense_case import case
from tests.ops.formats.natural import FORMATS
from tests.ops.sparse_case import using

OPS = torch.ops.compcomm
BACKENDS = ("reference", *native.isas()[-1:])
NINE, FOUR = FORMATS[0], FORMATS[5]


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: cc.Natural(bits=1), ["Natural(bits=1)", "2 to 9", "Use Cast(bfloat16)"]),
        (lambda: cc.Natural(bits=10), ["Natural(bits=10)", "2 to 9"]),
        (lambda: cc.Natural(bits=4.0), ["Natural(bits=4.0)", "2 to 9"]),
        (lambda: cc.Natural(bits=True), ["bits=True", "2 to 9"]),
        (lambda: cc.Natural(bits=4, norm=1), ["norm=1", "neither 2 nor inf"]),
        (lambda: cc.Natural(norm=2), ["Natural(norm=2)", "need no norm", "Leave it out"]),
        (lambda: cc.Natural(block=64), ["Natural(block=64)", "need no block"]),
        (lambda: cc.Natural(bits=4, block=100), ["block=100", "multiple of 16"]),
        (lambda: cc.Natural(dense_below=-1), ["dense_below=-1"]),
        (lambda: cc.AllReduce(cc.Natural()), ["AllReduce(Natural())", "cannot be summed"]),
    ],
)
def test_construction(make: Callable[[], object], parts: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:
        make()
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_feedback_takes_it_as_it_is_or_shrinks_it() -> None:
    assert cc.ErrorFeedback(cc.Natural()).reducer == cc.Natural()
    assert cc.ErrorFeedback(cc.Natural(bits=4)).reducer == cc.Natural(bits=4)
    assert cc.ErrorFeedback(cc.Natural(bits=3)).reducer == cc.Contractive(cc.Natural(bits=3))


def _call(form: object, name: str, **changes: object) -> None:
    c = case(form, sizes=(40, 600))  # type: ignore[arg-type]
    tensors: dict[str, Tensor] = {"wire": torch.zeros(c.nbytes, dtype=torch.uint8), "gain": c.gain, "table": c.table}
    tensors |= changes  # type: ignore[arg-type]
    status = torch.zeros(6, dtype=torch.uint8)
    lead = (c.x, c.add, tensors["wire"], tensors["table"], status, 1.0, 1.0, tensors["gain"])
    with using(name):
        if form is NINE:
            OPS.natural_encode(*lead, 0, 0)
        else:
            OPS.natural_dither_encode(*lead, tensors.get("bits", 4), False, tensors.get("block", 512), 0, 0)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", [NINE, FOUR], ids=str)
def test_encode(form: object, name: str) -> None:
    _call(form, name)
    c = case(form, sizes=(40, 600))  # type: ignore[arg-type]
    end = int(c.table[-1, 3]) + form.section(600)  # type: ignore[attr-defined]
    _call(form, name, wire=torch.zeros(end, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"table row 1 .*ends outside the wire"):
        _call(form, name, wire=torch.zeros(end - 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="gain has 3 elements"):
        _call(form, name, gain=torch.ones(3))
    with pytest.raises(TypeError, match=r"gain is torch\.float64"):
        _call(form, name, gain=torch.ones(2, dtype=torch.float64))
    for column, value, reason in (
        (0, 10**6, "outside x"),
        (1, 10**6, "outside add"),
        (2, -1, "numel"),
        (7, 5, "index"),
    ):
        table = c.table.clone()
        table[1, column] = value
        with pytest.raises(ValueError, match=f"table row 1 .*{reason}"):
            _call(form, name, table=table)


@pytest.mark.parametrize("name", BACKENDS)
def test_parameters_of_dithering(name: str) -> None:
    for bits, block, reason in ((1, 512, "2 to 8 bits"), (9, 512, "2 to 8 bits"), (4, 0, "16"), (4, 40, "16")):
        with pytest.raises(ValueError, match=reason):
            _call(FOUR, name, bits=bits, block=block)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", [NINE, FOUR], ids=str)
def test_decode(form: object, name: str) -> None:
    c = case(form, sizes=(40, 600))  # type: ignore[arg-type]
    op = OPS.natural_decode if form is NINE else OPS.natural_dither_decode
    tail = () if form is NINE else (4, 512)
    skip, out = torch.zeros(5, dtype=torch.uint8), torch.zeros_like(c.x)
    end = int(c.table[-1, 3]) + form.section(600)  # type: ignore[attr-defined]
    wires = torch.zeros(2, end, dtype=torch.uint8)
    with using(name):
        op(wires, c.table, skip, out, 1.0, True, *tail)
        with pytest.raises(ValueError, match=r"table row 1 .*ends outside messages"):
            op(wires[:, :-1], c.table, skip, out, 1.0, True, *tail)
        for column, value, reason in (
            (0, 10**6, "outside out"),
            (0, -2, "outside out"),
            (2, -1, "numel"),
            (7, 5, "skip"),
        ):
            table = c.table.clone()
            table[1, column] = value
            with pytest.raises(ValueError, match=f"table row 1 .*{reason}"):
                op(wires, table, skip, out, 1.0, True, *tail)
        if form is FOUR:
            with pytest.raises(ValueError, match="2 to 8 bits"):
                op(wires, c.table, skip, out, 1.0, True, 9, 512)
