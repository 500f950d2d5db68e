"""Headers and marked rows on GPU kernels answer to the reference, and that to the wire's own functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.core.header import PeerError, read_headers, write_headers
from compcomm.ops import backend
from compcomm.routes.all_reduce import place, read_flags
from tests.ops.calls.marks import SPANS

OPS = torch.ops.compcomm
COUNTS = (0, 1, 7, 8, 9, 300)


def message(rank: int, count: int, bad: bool = False, failed: bool = False) -> Tensor:
    """A rank's message of step 5, bucket 3, as the host writes it; segment s is dead where 3 divides s or on rank 1."""
    status = torch.tensor([bad, *(s % 3 != 0 and rank != 1 for s in range(count))], dtype=torch.uint8)
    wire = torch.full((20 + -(-count // 32) * 4 + 9,), 0xA5, dtype=torch.uint8)
    write_headers((wire,), status, cc.Context(rank=rank, world=3, step=5, bucket=3), failed=failed)
    return wire


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_headers_are_written_as_the_host_writes_them(implementation: str, count: int) -> None:
    status = torch.tensor([1, *(s % 3 != 0 for s in range(count))], dtype=torch.uint8)
    expected = torch.full((300,), 0xA5, dtype=torch.uint8)
    found = expected.clone()
    context = cc.Context(rank=2, world=3, step=2**33 + 5, bucket=3)
    write_headers((expected[:120], expected[120:290]), status, context)
    with backend(implementation):
        places = torch.tensor([[0, 120], [120, 170]])
        OPS.header_write(found, status, places, 0, 2, context.step, context.bucket)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_headers_are_read_as_the_host_reads_them(implementation: str, count: int) -> None:
    for bad in (False, True):
        wires = torch.stack([message(rank, count, bad=bad and rank == 2) for rank in range(3)])
        lengths = (wires.shape[1],) * 3
        flags = read_headers(wires, count, cc.Context(world=3, step=5, bucket=3), lengths)
        outcome, fault = torch.full((1 + count,), 9, dtype=torch.uint8), torch.full((1,), -1)
        with backend(implementation):
            OPS.header_read(wires, outcome, fault, torch.tensor(lengths), 5, 3)
        assert outcome.tolist() == [int(bad), *flags.skip.tolist()] and fault.item() == 0


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_the_first_rank_that_failed_or_is_elsewhere_is_named(implementation: str) -> None:
    def told(wires: Tensor) -> tuple[int, int]:
        outcome, fault = torch.zeros(5, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
        with backend(implementation):
            OPS.header_read(wires, outcome, fault, torch.tensor([wires.shape[1]] * 3), 5, 3)
        return int(fault), int(outcome[0])

    good = torch.stack([message(rank, 4) for rank in range(3)])
    assert told(good) == (0, 0)
    failed = good.clone()
    failed[1] = message(1, 4, failed=True)
    assert told(failed) == (4 * 1 + 1, 1)
    for byte in (0, 5, 6, 8, 12, 16):  # magic, reserved bits, rank, step, bucket, length
        elsewhere = failed.clone()
        elsewhere[0, byte] ^= 64
        assert told(elsewhere) == (2, 1), byte


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_summed_headers_are_read_as_the_host_reads_them(implementation: str, count: int) -> None:
    context, nan = cc.Context(world=3, step=5, bucket=3), float("nan")
    at = 3.0 * place(context)
    for first, met, due in (
        (at, 0.0, (0, 0)),
        (at, 2.0, (1, 0)),
        (at, nan, (1, 1)),
        (at + 1, 0.0, (1, 2)),
        (nan, nan, (1, 1)),
    ):
        sums = torch.tensor([first, met, *(float(s % 3) for s in range(count))])
        outcome, fault = torch.full((1 + count,), 9, dtype=torch.uint8), torch.full((1,), -1)
        with backend(implementation):
            OPS.sums_read(sums, outcome, fault, at)
        assert (int(outcome[0]), int(fault)) == due
        if due[1]:
            with pytest.raises(PeerError, match="a peer failed" if due[1] == 1 else "another step or bucket"):
                read_flags(sums, count, context)
        else:
            flags = read_flags(sums, count, context)
            assert flags.bad is bool(due[0]) and outcome[1:].tolist() == flags.skip.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_marked_rows(dtype: torch.dtype) -> None:
    for marks in ([0, 0, 0], [1, 0, 0], [0, 1, 1], [2, 1, 1]):
        results: list[tuple[Tensor, Tensor]] = []
        for implementation in ("reference", "triton"):
            draw = torch.Generator().manual_seed(1)
            to, source = (torch.randn(6000, generator=draw).to(dtype) for _ in range(2))
            source[5], source[2000] = float("nan"), float("inf")
            filled, chosen = to.clone(), torch.tensor(marks, dtype=torch.uint8)
            with backend(implementation):
                OPS.axpby_masked(to, source, SPANS, chosen, 0.5, -2.0)
                OPS.fill_masked(filled, SPANS, chosen, float("nan"))
            results.append((to, filled))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=str(marks))
        assert results[1][0].isfinite().all()
