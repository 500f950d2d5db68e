"""What schemes do to their memory, on GPU kernels: the reference's bits, and nothing beside the rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.dense_case import same
from tests.ops.interpreted.agreement import backends
from tests.ops.sparse_case import OPS, agree, call, using
from tests.ops.test_memory_spans import Case, case, status

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
SIZES = (1, 0, 17, 4095, 4096, 4097, 9000, 2)
KINDS = ("normal", "zero", "negative zero", "denormal", "huge", "nonfinite")
Mix = tuple[torch.dtype, torch.dtype]
on = pytest.mark.parametrize("backend", backends("axpby", "add_correction", "nonzero_segments"))


def spoilt(c: Case) -> Case:
    """NaN beside the rows would hide what is written there."""
    return c._replace(to=c.to.nan_to_num(1e3, torch.inf, -torch.inf))


@on
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(backend: str, kind: str) -> None:
    sizes = SIZES if kind == "normal" else (0, 17, 4097)
    for dtype, alpha in ((F32, 0.0), (F32, 0.7), (F64, 0.7)):
        c = spoilt(case(kind, dtype, sizes))
        agree([backend], "axpby", c.to, c.source, c.table, c.beta, status(c), alpha)
    for dtype in (F32, F64):
        c, other = spoilt(case(kind, dtype, sizes)), case("normal", dtype, sizes)
        rows = c.table[:, [1, 0, 2, 3]].contiguous()  # the spoilt side is written
        agree([backend], "add_correction", c.source, other.to, c.to, rows, status(c), 0.3, -7.0)


@on
@pytest.mark.parametrize("mix", [(BF16, F32), (F32, BF16), (F16, F32), (F32, F16), (BF16, BF16)], ids=str)
def test_half_precision(backend: str, mix: Mix) -> None:
    """Computed in fp32, stored to the nearest."""
    c = spoilt(case("nonfinite", sizes=(0, 17, 4097, 2)))
    to, source = c.to.to(mix[0]), c.source.to(mix[1])
    agree([backend], "axpby", to, source, c.table, c.beta, status(c), 0.3)
    agree([backend], "axpby", to, source, c.table, c.beta.bfloat16(), status(c), 0.0)
    agree([backend], "nonzero_segments", source, c.table, status(c))
    near = source.nan_to_num(0.0, 1.0, -1.0)  # a NaN has many forms
    agree([backend], "add_correction", to, near, near.float(), c.table, status(c), 0.3, 7.0)


@on
@pytest.mark.parametrize("kind", (*KINDS, "one"))
@pytest.mark.parametrize("dtype", [F32, F64])
def test_alive(backend: str, dtype: torch.dtype, kind: str) -> None:
    c = case(kind, dtype, (*SIZES, 20_000))
    agree([backend], "nonzero_segments", c.source, c.table, status(c) + 6)


@on
def test_aligned_rows(backend: str) -> None:
    table, told = torch.tensor([[4, 8, 4096, 0], [4104, 4104, 4, 2], [4112, 4112, 5000, 1]]), torch.zeros(4).byte()
    x, y, z = torch.randn(3, 9120)
    agree([backend], "axpby", x, y, table, torch.tensor([0.5, 2.0, -1.0]), told, 0.5)
    agree([backend], "add_correction", x, y, z, table, told, 0.3, 2.0)
    agree([backend], "nonzero_segments", x, table, told)


@on
def test_rows_that_meet_and_rows_in_place(backend: str) -> None:
    """A row finds what an earlier one left, where they meet; a slab may be blended into itself."""
    flat, beta, told = torch.randn(9001), torch.tensor([0.5, 2.0, -1.0]), torch.zeros(4, dtype=torch.uint8)
    meeting = torch.tensor([[0, 0, 5000, 0], [4000, 100, 5000, 1], [3, 4, 0, 2]])
    agree([backend], "axpby", flat, torch.randn(6000), meeting, beta, told, 0.5)
    apart = torch.tensor([[0, 0, 5000, 0], [5000, 5000, 4000, 1], [3, 4, 0, 2]])
    reading = torch.tensor([[0, 0, 5000, 0], [5000, 100, 4000, 1], [3, 4, 0, 2]])
    for table in (apart, reading):
        results: list[Tensor] = []
        for name in (backend, "reference"):
            results.append(flat.clone())
            with using(name):
                OPS.axpby(results[-1], results[-1], table, beta, told, 0.5)
        assert same(*results)


@on
def test_wrong_rows(backend: str) -> None:
    c = case(sizes=(40, 60))
    for column, value, reason in ((0, 10**6, "are written"), (1, -1, "are read"), (3, 2, "index")):
        table = c.table.clone()
        table[1, column] = value
        with pytest.raises(ValueError, match=rf"compcomm\.axpby: table row 1 .*{reason}"):
            call(backend, "axpby", c.to, c.source, table, c.beta, status(c), 1.0)
    with pytest.raises(TypeError, match="fp64 alone"):
        call(backend, "nonzero_segments", c.source.int(), c.table, status(c))
