"""Norms on GPU kernels: chunks at a step add up as their elements do one by one, to the bit."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.ops.interpreted.agreement import backends, full
from tests.ops.sparse_case import agree, make

SIZES = (0, 1, 17, 257, 1281, 2600)


def starts(sizes: Sequence[int]) -> list[int]:
    return [3 + sum(sizes[:i]) + 2 * i for i in range(len(sizes))]


STARTS = starts(SIZES)
NUMEL = STARTS[-1] + SIZES[-1] + 2


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few elements are many chunks."""
    monkeypatch.setattr(importlib.import_module("compcomm.ops.triton.norms"), "STEPS", 16)


def check(backend: str, x: Tensor, sizes: Sequence[int] = SIZES) -> None:
    table = torch.tensor([(0, at, n, 0) for at, n in zip(starts(sizes), sizes, strict=True)])
    agree([backend], "norms", x, table, torch.full((len(table),), -1.0, dtype=torch.float64))


@pytest.mark.parametrize("backend", backends("norms"))
def test_kinds(backend: str) -> None:
    """A row of each, of six chunks, and short ones."""
    kinds = ("normal", "denormal", "huge", "one", "nonfinite", "equal", "negative zero", "nonfinite")
    sizes = (*[1281] * (len(kinds) - 1), 17)
    x = make("normal", starts(sizes)[-1] + 19)
    for kind, at, n in zip(kinds, starts(sizes), sizes, strict=True):
        x[at : at + n] = make(kind, n, at)
    check(backend, x, sizes)


@pytest.mark.parametrize("scale", [full(1.0), 1e152, 1e-160])
@pytest.mark.parametrize("backend", backends("norms"))
def test_double_precision(backend: str, scale: float) -> None:
    """Squares that are not exact, overflow and underflow."""
    g = torch.Generator().manual_seed(2)
    check(backend, torch.randn(NUMEL, generator=g, dtype=torch.float64) * scale)


@pytest.mark.parametrize("bits", [2, 11])
@pytest.mark.parametrize("backend", backends("norms"))
def test_ties(backend: str, bits: int) -> None:
    """A first element so large that others of few bits end half-way between two numbers; halves of odd numbers between
    them, without which a sum that was even stays it, and ties would need no rule."""
    g = torch.Generator().manual_seed(bits)
    x = torch.randint(1, 2**bits, (NUMEL,), generator=g).float()
    x[::3] += 0.5
    for at, n in zip(STARTS, SIZES, strict=True):
        x[at : at + min(n, 16)] = 2.0**26.5 if bits > 2 else 3e4
        x[at + 16 : at + min(n, 32)] = 16124.0 if bits > 2 else 3.0  # a little below 2^53, which is soon passed
    check(backend, x)
    x[STARTS[-1] + 1000 : STARTS[-1] + 2500] = 0.0
    check(backend, x.half() if bits == 2 else x.bfloat16())


@pytest.mark.parametrize("backend", backends("norms"))
def test_a_power_of_two_that_is_not_reached(backend: str) -> None:
    """Squares that add up to 2^48 - 1, and then thousands too small to be added, but not in a rough sum."""
    x = torch.full((NUMEL,), 0.088)
    for at, n in zip(STARTS, SIZES, strict=True):
        first = torch.tensor([16777215.0, 5792.0, 84.0, 10.0, 3.0, 1.0]).repeat_interleave(16)
        x[at : at + min(n, 96)] = first[: min(n, 96)]
    check(backend, x)
