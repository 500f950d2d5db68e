"""Ternary, two means, codebooks, shared scales, permuted blocks, and sections of variable length."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops import test_interleave, test_shared, test_variable
from tests.ops.calls import Call
from tests.ops.calls.dense import both
from tests.ops.formats import codebook, ternary, two_means


def shared_norms(norm2: bool, add: bool = True, block: int = 512) -> tuple[Any, ...]:
    first, _, numel, nbytes, _ = test_shared.tables(4, block)
    norms, status = torch.zeros(nbytes, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)
    return (torch.ones(numel), torch.ones(numel) if add else None, norms, first, status, 0.9, 1.5, 7, norm2, block)


def shared_encode(width: int, levels: int, stochastic: bool, block: int = 512) -> tuple[Any, ...]:
    _, rows, numel, nbytes, size = test_shared.tables(width, block)
    norms, words = torch.zeros(nbytes, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    return (torch.ones(numel), norms, words, rows, width, levels, stochastic, block, 3, 1)


def shared_decode(width: int, levels: int, accumulate: bool, block: int = 512) -> tuple[Any, ...]:
    x, norms, words, rows, *_ = shared_encode(width, levels, True, block)
    skip = torch.zeros(3, dtype=torch.uint8)
    return (words, norms, rows, skip, x, 0.5, accumulate, width, levels, block, 2)


def permute_blocks(x: bool = True, add: bool = True) -> tuple[Any, ...]:
    table, numel, nbytes = test_interleave.tables(3)
    table = table[:2] if x and not add else table
    if not x:
        table[:, 0], table[:, 1] = -1, table[:, 0].clamp(min=0) + 1
    given = torch.ones(numel) if x else None, torch.ones(numel) if add else None
    z, status = torch.zeros(nbytes, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    return (*given, z, table, status, 0.9, 1.5, 16)


def compact() -> tuple[Any, ...]:
    c = test_variable.make(test_variable.TYPICAL)
    return (c.wire, c.table, c.spans, torch.zeros_like(c.bodies), torch.zeros(4, dtype=torch.int64))


def scatter() -> tuple[Any, ...]:
    c = test_variable.make(test_variable.TYPICAL)
    return (c.bodies, c.places, c.table, c.spans, torch.zeros_like(c.wire))


CODEBOOKS = [
    codebook.coded(4),
    codebook.coded(1, dot=True, block=48),
    codebook.coded(3, 20000),
    codebook.coded(0, 20000, block=64),
    codebook.coded(8, block=8192),
]
CALLS: list[Call] = [
    *both(ternary._form(0.0, 512)),
    *both(ternary._form(2.1, 48)),
    *both(two_means._form(512)),
    *both(two_means._form(8192)),
    *(call for form in CODEBOOKS for call in both(form)),
    ("shared_norms", lambda: shared_norms(False)),
    ("shared_norms", lambda: shared_norms(True, False, 8192)),
    ("shared_encode", lambda: shared_encode(4, 7, True)),
    ("shared_encode", lambda: shared_encode(6, 7, False, 48)),
    ("shared_encode", lambda: shared_encode(2, 1, True, 48)),
    ("shared_decode", lambda: shared_decode(4, 7, True)),
    ("shared_decode", lambda: shared_decode(6, 7, False, 48)),
    ("permute_blocks", permute_blocks),
    ("permute_blocks", lambda: permute_blocks(add=False)),
    ("permute_blocks", lambda: permute_blocks(x=False)),
    ("compact", compact),
    ("scatter", scatter),
]
