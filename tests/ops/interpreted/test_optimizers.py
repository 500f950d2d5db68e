"""Optimizer steps on GPU kernels: the reference's bits for every pair of dtypes, and tables of addresses."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.ops.interpreted.agreement import backends
from tests.ops.sparse_case import make, using
from tests.ops.test_adam import BF16, F16, F32, F64, PAIRS, Case, agree, bits, call, case, transposed

OPS = torch.ops.compcomm
SHAPES = ((), (1,), (3, 0), (7, 5), (2047,), (2048,), (2049,), (5, 1000))
SMALL = ((3,), (50, 45))
KINDS = ("zero", "negative zero", "denormal", "huge", "nonfinite")


@pytest.mark.parametrize(("param", "grad"), PAIRS)
@pytest.mark.parametrize("backend", backends("adam", "momentum", "descend"))
def test_pairs(backend: str, param: torch.dtype, grad: torch.dtype) -> None:
    c = case(param, grad, shapes=SMALL)
    for l2, decay in ((0.0, 0.0), (0.03, 0.02)):
        agree(backend, "adam", c, l2=l2, decay=decay)
        agree(backend, "momentum", c, l2=l2, in_place=l2 > 0.0)
        agree(backend, "descend", c, decay=decay)


@pytest.mark.parametrize("backend", backends("adam", "momentum", "descend"))
def test_shapes(backend: str) -> None:
    for op in ("adam", "momentum", "descend"):
        agree(backend, op, case(BF16, F32, shapes=SHAPES), l2=0.03, decay=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", backends("adam", "momentum", "descend"))
def test_kinds(backend: str, kind: str) -> None:
    for dtype in (F32, BF16, F16):
        c = case(dtype, dtype, kind, shapes=SMALL)
        c = c._replace(params=c.grads)
        flats = [make(kind, len(c.flats[0]), 5), make(kind, len(c.flats[0]), 6).square(), c.flats[2]]
        for op, other in itertools.product(("adam", "momentum", "descend"), (c, c._replace(flats=flats))):
            agree(backend, op, other, decay=0.02, l2=0.0)


@pytest.mark.parametrize("backend", backends("adam", "momentum", "descend"))
def test_what_the_table_cannot_describe(backend: str) -> None:
    """fp64 and other strides beside the rest, gradients that are missing, terms that are not read."""
    parts = [case(*pair, shapes=SMALL) for pair in ((F32, F32), (F64, BF16), (BF16, F16))]
    parts.append(case(F16, F32, shapes=SMALL, change=transposed))
    n = len(parts[0].flats[0])
    c = Case(
        [p for part in parts for p in part.params],
        [g for part in parts for g in part.grads],
        [s + k * n for k, part in enumerate(parts) for s in part.starts],
        [torch.cat([part.flats[i] for part in parts]) for i in range(3)],
    )
    for op in ("adam", "momentum", "descend"):
        agree(backend, op, c, l2=0.03, decay=0.02)
    missing = c._replace(grads=[torch.zeros(0) if i % 2 else g for i, g in enumerate(c.grads)])
    for l2 in (0.0, 0.03):
        agree(backend, "momentum", missing, l2=l2)
    spoilt = c._replace(params=[torch.full_like(p, torch.inf) for p in c.params])
    agree(backend, "adam", spoilt, l2=1e-60)


@pytest.mark.parametrize("backend", backends("adam", "momentum", "descend"))
def test_addresses_that_change(backend: str) -> None:
    """Other gradients, and other types at the same places, are met as they are."""
    c = case(F32, F32, shapes=SMALL)
    room = torch.randn(3000)
    for _ in range(2):
        for grads in (c.grads, [g * 2 for g in c.grads], [room[:3], room[4:2254].view(50, 45)]):
            agree(backend, "adam", c._replace(grads=grads))
        half = room.bfloat16()
        half = room.view(BF16).copy_(half.repeat(2))
        agree(backend, "adam", c._replace(grads=[half[:3], half[8:2258].view(50, 45)]))


@pytest.mark.parametrize("backend", backends("adam", "momentum", "descend"))
def test_aligned_tables(backend: str) -> None:
    room = torch.randn(2, 4096 + 64)
    p, g = (r[-r.data_ptr() // 4 % 16 :] for r in room)
    c = Case([p[:4096], p[4096:4100]], [g[:4096], g[4096:4100]], [0, 4096], [make("normal", 4100, 7).abs()] * 3)
    for op in ("adam", "momentum", "descend"):
        found, due = call(backend, op, c), call("reference", op, c)
        assert all(torch.equal(bits(x), bits(y)) for x, y in zip(found, due, strict=True))


@pytest.mark.parametrize("backend", backends("adam", "momentum", "descend"))
def test_status_versions_and_errors(backend: str) -> None:
    c, told = case(shapes=SMALL), torch.full((1,), 6, dtype=torch.uint8)
    c.grads[1][3, 2] = -torch.inf
    p = torch.nn.Parameter(torch.ones(3))
    loss = (p * p).sum()
    with using(backend), torch.no_grad():
        OPS.momentum(c.grads, c.params, c.starts, c.flats[0], c.flats[2], 0.9, 1.0, 0.0, told)
        assert told.tolist() == [7]
        OPS.descend([p], [0], torch.ones(3), torch.ones(3), 0.1, 0.0)
        OPS.adam([], [], [], torch.ones(3), torch.ones(3), 0.9, 0.9, 1.0, 0.1, 1.0, 1e-8, 0.0, 0.0)
        with pytest.raises(ValueError, match=r"adam: starts\[1\] is 70: params\[1\] takes"):
            OPS.adam(c.params, c.grads, [1, 70], *c.flats[:2], 0.9, 0.9, 1.0, 0.1, 1.0, 1e-8, 0.0, 0.0)
        with pytest.raises(ValueError, match=r"adam: grads\[1\] has shape"):
            OPS.adam(c.params, [*c.grads[:1], c.grads[0]], c.starts, *c.flats[:2], 0.9, 0.9, 1.0, 0.1, 1.0, 1e-8, 0, 0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
