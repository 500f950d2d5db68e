"""Top-k and rand-k, and what brings top-k messages back."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.calls import Call
from tests.ops.sparse_case import elements, make, nbytes, table_of

ROWS = [(3000, 90), (40, 3)]


def encode(*tail: Any, dtype: torch.dtype | None = torch.float32, x: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Arguments of an encoder; ``dtype`` of the gradient (None: there is none), ``x`` of the residual."""
    table = table_of(ROWS, add=dtype is not None)
    add = None if dtype is None else make("normal", elements(table), 1).to(dtype)
    wire, status = torch.zeros(nbytes(table), dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    return (make("normal", elements(table)).to(x), add, wire, table, status, 0.9, 1.5, *tail)


def decode(*tail: Any, dtype: torch.dtype = torch.float32, messages: int = 2) -> tuple[Any, ...]:
    """Arguments of a decoder: messages of zeros, which hold no element, into an ``out`` of that type."""
    table = table_of(ROWS)
    wires = torch.zeros(messages, nbytes(table), dtype=torch.uint8)
    out = torch.zeros(elements(table), dtype=dtype)
    return (wires, table, torch.zeros(2, dtype=torch.uint8), out, 0.5, *tail)


def own(dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    wires, table, _, out, _ = decode(dtype=dtype, messages=1)
    return wires, table, out


def topk_scatter(dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    wires, table, out = own(dtype)
    return wires, table, torch.tensor([[3000, 0, 5], [40, 0, 1]]), out, 0.5, 16


BF16 = torch.bfloat16
CALLS: list[Call] = [
    ("topk_encode", lambda: encode(torch.zeros(2))),
    ("topk_encode", lambda: encode(None, dtype=BF16)),
    ("topk_encode", lambda: encode(None, dtype=None)),
    ("topk_encode", lambda: encode(torch.zeros(2), dtype=BF16, x=BF16)),
    ("topk_some_encode", lambda: encode(torch.tensor([50, 0]), torch.zeros(2))),
    ("topk_some_encode", lambda: encode(torch.tensor([50, 0]), torch.zeros(2), dtype=None)),
    ("topk_sampled_encode", lambda: encode(7, 2)),
    ("topk_sampled_encode", lambda: encode(7, 2, dtype=BF16, x=BF16)),
    ("topk_sampled_encode", lambda: encode(7, 2, dtype=None)),
    ("topk_decode", lambda: decode(True)),
    ("topk_decode", lambda: decode(False)),
    ("topk_decode", lambda: decode(True, dtype=BF16)),
    ("topk_decode", lambda: decode(False, dtype=BF16)),
    ("topk_decode", lambda: decode(True, dtype=BF16, messages=1)),
    ("topk_zero", own),
    ("topk_zero", lambda: own(BF16)),
    ("topk_scatter", topk_scatter),
    ("topk_scatter", lambda: topk_scatter(BF16)),
    ("randk_encode", lambda: encode(torch.ones(2), 5)),
    ("randk_encode", lambda: encode(torch.ones(2), 5, dtype=None)),
    ("randk_encode", lambda: encode(torch.ones(2), 5, dtype=BF16, x=BF16)),
    ("randk_decode", lambda: decode(True, 5)),
    ("randk_decode", lambda: decode(False, 5, dtype=BF16)),
]
