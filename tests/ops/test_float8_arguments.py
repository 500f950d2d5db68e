"""Wrong arguments of Cast to 8 bits and of its ops: refused, with the call, the value, the reason and the cure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import compcomm as cc
from compcomm.ops import native
from tests.ops.dense_case import case
from tests.ops.formats.float8 import FORMATS
from tests.ops.sparse_case import using

OPS = torch.ops.compcomm
BACKENDS = ("reference", *native.isas()[-1:])
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: cc.Cast(torch.float32), ["float32", "torch.float8_e4m3fn", "torch.float8_e5m2", "torch.bfloat16"]),
        (lambda: cc.Cast(torch.float8_e4m3fnuz), ["float8_e4m3fnuz", "torch.float8_e4m3fn"]),
        (lambda: cc.Cast(E4M3, block=100), ["Cast(float8_e4m3fn, block=100)", "multiple of 16"]),
        (lambda: cc.Cast(torch.bfloat16, block=64), ["Cast(bfloat16, block=64)", "no block", "Leave it out"]),
        (lambda: cc.AllReduce(cc.Cast(E5M2)), ["AllReduce(Cast(float8_e5m2))", "cannot be summed", "TwoPhase"]),
    ],
)
def test_construction(make: Callable[[], object], parts: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:
        make()
    assert all(part in str(refusal.value) for part in parts), refusal.value


@pytest.mark.parametrize("to", [E4M3, E5M2])
def test_routes_and_feedback(to: torch.dtype) -> None:
    c = cc.Cast(to, block=64)
    assert cc.parse(repr(c)) == c
    assert isinstance(cc.settle(c, 2), cc.AllGather) and isinstance(cc.settle(c, 8), cc.TwoPhase)
    assert cc.ErrorFeedback(c).reducer == c
    assert not c.linear and cc.Cast(torch.bfloat16).linear


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", FORMATS[:2], ids=str)
def test_ops(form: object, name: str) -> None:
    c = case(form, sizes=(40, 600))  # type: ignore[arg-type]
    e5m2 = form is FORMATS[1]
    status, skip = torch.zeros(6, dtype=torch.uint8), torch.zeros(5, dtype=torch.uint8)
    end = int(c.table[-1, 3]) + form.section(600)  # type: ignore[attr-defined]
    wires = torch.zeros(2, end, dtype=torch.uint8)
    with using(name):
        OPS.float8_encode(c.x, c.add, wires[0], c.table, status, 1.0, 1.0, e5m2, 512)
        OPS.float8_decode(wires, c.table, skip, c.x, 1.0, True, e5m2, 512)
        with pytest.raises(ValueError, match=r"table row 1 .*ends outside the wire"):
            OPS.float8_encode(c.x, c.add, wires[0, :-1], c.table, status, 1.0, 1.0, e5m2, 512)
        with pytest.raises(ValueError, match=r"table row 1 .*ends outside messages"):
            OPS.float8_decode(wires[:, :-1], c.table, skip, c.x, 1.0, True, e5m2, 512)
        for block in (0, 40):
            with pytest.raises(ValueError, match="multiple of 16"):
                OPS.float8_encode(c.x, c.add, wires[0], c.table, status, 1.0, 1.0, e5m2, block)
            with pytest.raises(ValueError, match="multiple of 16"):
                OPS.float8_decode(wires, c.table, skip, c.x, 1.0, True, e5m2, block)
        for column, value in ((0, 10**6), (2, -1), (7, 5)):
            table = c.table.clone()
            table[1, column] = value
            with pytest.raises(ValueError, match="table row 1 "):
                OPS.float8_encode(c.x, c.add, wires[0], table, status, 1.0, 1.0, e5m2, 512)
            with pytest.raises(ValueError, match="table row 1 "):
                OPS.float8_decode(wires, table, skip, c.x, 1.0, True, e5m2, 512)
