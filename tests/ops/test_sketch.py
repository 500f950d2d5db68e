"""Sketch kernels: the reference's bits on every instruction set, only in their rows, and errors that explain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compcomm.compressors.sketch import quantiles
from compcomm.ops import native
from tests.ops.dense_case import Case, Format, case, gaps, same
from tests.ops.sparse_case import KINDS, rows_of_kinds, using

OPS = torch.ops.compcomm
BACKENDS = ("reference", *native.isas())
SIZES = {"count": (0, 1, 15, 16, 63, 65, 128, 513, 4099), "gauss": (0, 1, 15, 16, 129, 530)}


def sketched(name: str, kind: str = "normal", seed: int = 0, sizes: tuple[int, ...] | None = None) -> Case:
    """Rows of n elements and about n/5 sums; row 3 has a single one."""
    c = case(Format("dense"), kind, sizes or SIZES[name], seed)
    c.table[:, 6] = torch.clamp(c.table[:, 2] // 5, min=1) * (c.table[:, 2] > 0)
    c.table[-1, 6] = 1 if name == "count" else 7
    return c


def tail(name: str) -> tuple[Tensor, ...]:
    return (quantiles(),) if name == "gauss" else ()


def encode(backend: str, name: str, c: Case, decay: float = 0.75, add_scale: float = 1.3) -> tuple[Tensor, ...]:
    x, wire = c.x.clone(), torch.full((c.nbytes + 1,), 0xA5, dtype=torch.uint8)[1:]
    status = torch.tensor([4, 0, 0, 0, 2, 0], dtype=torch.uint8)
    with using(backend):
        op = getattr(OPS, f"{name}_encode")
        op(x, c.add, wire, c.table, status, decay, add_scale, c.gain, *tail(name), 3)
    return x, wire, status


def decode(
    backend: str, name: str, wires: Tensor, table: Tensor, out: Tensor, scale: float, accumulate: bool, skip: Tensor
) -> Tensor:
    out = out.clone()
    with using(backend):
        getattr(OPS, f"{name}_decode")(wires, table, skip, out, scale, accumulate, *tail(name), 3)
    return out


@pytest.mark.parametrize("name", ["count", "gauss"])
def test_encode_equals_the_reference(name: str) -> None:
    for seed in range(3):  # every row has another kind of numbers
        c = sketched(name, seed=seed)
        x, add = rows_of_kinds(c.table, KINDS[3 * seed :] + KINDS[: 3 * seed], seed)
        c = c._replace(x=x, add=add)
        due = encode("reference", name, c)
        assert due[0].isfinite().all()
        for isa in native.isas():
            assert all(same(a, b) for a, b in zip(encode(isa, name, c), due, strict=True)), (seed, isa)


@pytest.mark.parametrize("name", ["count", "gauss"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_encode_writes_only_its_rows_and_keeps_the_rest(name: str, backend: str) -> None:
    c = sketched(name)
    x, wire, _ = encode(backend, name, c)
    rows = c.table.tolist()
    outside = gaps([(r[0], r[2]) for r in rows], c.x.numel())
    assert same(x[outside], c.x[outside])
    assert (wire[gaps([(r[3], 4 * r[6]) for r in rows], c.nbytes)] == 0xA5).all()
    sent = decode(backend, name, wire.unsqueeze(0), c.table, torch.zeros_like(c.x), 1.0, False, torch.zeros(5).byte())
    for at, add, n, *_ in rows:
        y = c.x[at : at + n] * 0.75
        y = y + c.add[add : add + n] * 1.3 if add >= 0 else y
        assert same(x[at : at + n], y - sent[at : at + n])


@pytest.mark.parametrize("name", ["count", "gauss"])
def test_decode_equals_the_reference(name: str) -> None:
    c = sketched(name)
    wires = torch.full((5, c.nbytes + 5), 0x5A, dtype=torch.uint8)[:, 3:-2]
    for rank in range(5):
        wires[rank] = encode("reference", name, sketched(name, seed=rank))[1]
    c.table[3, 0] = -1
    skip = torch.tensor([0, 1, 0, 0, 0], dtype=torch.uint8)
    outside = gaps([(r[0], r[2]) for r in c.table.tolist() if r[0] >= 0], c.x.numel())
    poisoned = torch.where(outside, torch.nan, c.add)
    for messages, accumulate in ((1, False), (1, True), (2, False), (5, True)):
        arguments = (wires[:messages], c.table, poisoned, 0.3, accumulate, skip)
        due = decode("reference", name, *arguments)
        assert due[outside].isnan().all() and not due[~outside].isnan().any()
        for isa in native.isas():
            assert same(decode(isa, name, *arguments), due), (messages, accumulate, isa)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["count", "gauss"])
def test_what_could_overflow_is_not_sent(name: str, backend: str) -> None:
    for value, refused in ((2.0**64, True), (-(2.0**64) * (1 - 2.0**-24), False)):
        c = sketched(name, sizes=(70, 70))
        c.add[int(c.table[0, 1]) + 5] = value
        x, wire, status = encode(backend, name, c, 1.0, 1.0)
        first = wire[int(c.table[0, 3]) :][: 4 * int(c.table[0, 6])].clone().view(torch.float32)
        assert bool(status[0] & 1) is refused and bool(first.any()) is not refused and x.isfinite().all()
        second = wire[int(c.table[1, 3]) :][: 4 * int(c.table[1, 6])].clone().view(torch.float32)
        assert second.any()


@pytest.mark.parametrize("backend", ["reference", *native.isas()[-1:]])
@pytest.mark.parametrize("name", ["count", "gauss"])
def test_wrong_arguments(name: str, backend: str) -> None:
    c = sketched(name, sizes=(40, 100))
    skip, wire = torch.zeros(5, dtype=torch.uint8), torch.zeros(c.nbytes, dtype=torch.uint8)
    status = torch.zeros(6, dtype=torch.uint8)
    head = {"encode": (c.x, c.add, wire), "decode": (wire.unsqueeze(0),)}
    rest: dict[str, Any] = {
        "encode": lambda table: (table, status, 1.0, 1.0, c.gain, *tail(name), 3),
        "decode": lambda table: (table, skip, c.x, 1.0, True, *tail(name), 3),
    }
    for kind in ("encode", "decode"):
        op = getattr(OPS, f"{name}_{kind}")
        for column, value, reason in ((6, 0, "1 to 2"), (6, -1, "1 to 2"), (6, 1 << 31, "1 to 2"), (6, 10**6, "ends"),
                                      (3, 10**7, "ends"), (0, 10**6, "outside"), (7, 9, "index")):  # fmt: skip
            table = c.table.clone()
            table[1, column] = value
            with using(backend), pytest.raises(ValueError, match=rf"compcomm\.{name}_{kind}: table row 1.*{reason}"):
                op(*head[kind], *rest[kind](table))
    if name == "gauss":
        with pytest.raises(ValueError, match="quantiles has 7 elements"):
            OPS.gauss_decode(wire.unsqueeze(0), c.table, skip, c.x, 1.0, True, torch.zeros(7), 3)
