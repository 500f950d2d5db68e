"""What the tests of kernels for GPUs share: their results against the reference's, to the bit, without a GPU.

Triton's interpreter has a kernel for every op. CUDA kernels, compiled for the host, are few: a case of another op is
not collected for them (``backends``, ``of``).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from tests.ops import emulated
from tests.ops.dense_case import Case, Form, case, decode, encode, gaps, same
from tests.ops.sparse_case import rows_of_kinds

emulated.choose()
SIZES = (
    0,
    1,
    17,
    512,
    40,
    2100,
    33,
    700,
)  # a block, several, two tiles; no gradient but x in the third row and each fourth
KINDS = ("normal", "denormal", "nonfinite", "huge", "negative zero")


@cache
def in_cuda() -> frozenset[str]:
    """The ops that have CUDA kernels, read from the package; none where they cannot be compiled."""
    found = set[str]()
    for path in (emulated.ROOT / "compcomm" / "ops" / "cuda").glob("*.py") if emulated.COMPILER else ():
        for node in ast.walk(ast.parse(path.read_text())):
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "kernel":
                    found.add(ast.literal_eval(call.args[0]))
    return frozenset(found)


def backends(*ops: str) -> list[str]:
    """Where all these ops have kernels of their own."""
    return ["triton", "cuda"] if in_cuda() >= set(ops) else ["triton"]


def of(kind: str, forms: Iterable[Any]) -> Any:
    """Parametrizes (backend, form), or (backend, form, *more): ``kind`` "encode" or "decode"."""
    cases: list[Any] = []
    for given in forms:
        marks = getattr(given, "marks", ())
        values: Sequence[Any] = given.values if hasattr(given, "marks") else (given,)
        form, *more = values
        for backend in backends(f"{form.name}_{kind}"):
            label = "-".join(map(str, (backend, form, *more)))
            cases.append(pytest.param(backend, *values, marks=marks, id=label))
    names = ("backend", "form", "tile", "piece")[: len(cases[0].values)]
    return pytest.mark.parametrize(names, cases)


def full(*values: Any) -> Any:
    """What another line covers as well."""
    return pytest.param(*values, marks=pytest.mark.full)


def mixed(form: Form, sizes: tuple[int, ...], seed: int = 0) -> Case:
    """Rows of all kinds of numbers."""
    c = case(form, "normal", sizes)
    x, add = rows_of_kinds(c.table, KINDS, seed)
    return c._replace(x=x, add=add)


def check_encode(backend: str, form: Form, sizes: tuple[int, ...] = SIZES) -> None:
    """Every kind of number in fp32; then some without a gradient, and with both in half precision. All bytes are the
    reference's, also those beside the rows."""
    few = mixed(form, sizes[1:4], seed=1)
    for c, add in (
        (mixed(form, sizes), True), (few, False), (few._replace(x=few.x.bfloat16(), add=few.add.half()), True),
    ):  # fmt: skip
        expected, found = (encode(name, form, c, 0.75, 1.3, add) for name in ("reference", backend))
        for name, tensor in expected.items():
            assert same(found[name], tensor), (form, c.x.dtype, add, name)


def check_decode(backend: str, form: Form, sizes: tuple[int, ...] = SIZES) -> None:
    """One message and several, at odd addresses, added and written, rows skipped and absent; into fp32 and bf16."""
    c = case(form, "normal", sizes)
    wires = torch.full((3, c.nbytes + 5), 0x5A, dtype=torch.uint8)[:, 3:-2]
    for rank in range(3):
        wires[rank] = encode("reference", form, case(form, "normal", sizes, seed=rank), rank=rank)["wire"]
    c.table[3, 0] = -1
    skip = torch.tensor([0, 1, 0, 0, 0], dtype=torch.uint8)
    outside = gaps([(r[0], r[2]) for r in c.table.tolist() if r[0] >= 0], c.x.numel())
    poisoned = torch.where(outside, torch.nan, c.add)
    for messages, accumulate in ((1, True), (3, False)):
        arguments = (wires[:messages], poisoned, 0.3, accumulate, skip)
        expected = decode("reference", form, c, *arguments)
        assert same(decode(backend, form, c, *arguments), expected), (form, messages, accumulate)
    narrow = decode(backend, form, c, wires, poisoned.bfloat16(), 0.3, False, skip)
    assert torch.equal(narrow[~outside], expected[~outside].bfloat16()), form
