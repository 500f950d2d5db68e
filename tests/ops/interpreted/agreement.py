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
from tests.ops.dense_case import GAP, Format, case, decode, encode, gaps, same

emulated.choose()
SIZES = (0, 1, 17, 512, 1030)
KINDS = ("normal", "denormal", "huge", "nonfinite", "negative zero")
SCALES = {"huge": (1.0, 1.0), "nonfinite": (0.9, 1.0)}


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


def check_encode(backend: str, form: Format, kinds: tuple[str, ...] = KINDS) -> None:
    """Every kind of number, with a gradient and without, in fp32 and bf16; nothing outside the rows is touched."""
    for seed, kind in enumerate(kinds):
        c = case(form, kind, SIZES, seed=seed)
        decay, add_scale = SCALES.get(kind, (0.75, 1.3))
        for add in (True, False) if kind in ("normal", "nonfinite") else (True,):
            expected = encode("reference", form, c, decay, add_scale, add)
            found = encode(backend, form, c, decay, add_scale, add)
            for name, tensor in expected.items():
                assert same(found[name], tensor), (form, kind, add, name)
    c = case(form, "normal", SIZES)
    expected = encode("reference", form, c._replace(add=c.add.bfloat16().float()), 0.75, 1.3)
    found = encode(backend, form, c._replace(add=c.add.bfloat16()), 0.75, 1.3)
    assert all(same(found[name], tensor) for name, tensor in expected.items()), (form, "bf16")
    rows = c.table.tolist()
    outside = gaps([(r[0], r[2]) for r in rows], c.x.numel())
    assert same(found["x"][outside], c.x[outside])
    outside = gaps([(r[3], form.section(r[2])) for r in rows], c.nbytes)
    assert (found["wire"][outside] == 0xA5).all()


def check_decode(backend: str, form: Format) -> None:
    """One message and several, at odd addresses, added and written, rows skipped and absent; into fp32 and bf16."""
    c = case(form, "normal", SIZES)
    wires = torch.full((3, c.nbytes + 5), 0x5A, dtype=torch.uint8)[:, 3:-2]
    for rank in range(3):
        wires[rank] = encode("reference", form, case(form, "normal", SIZES, seed=rank), rank=rank)["wire"]
    c.table[3, 0] = -1
    skip = torch.tensor([0, 1, 0, 0, 0], dtype=torch.uint8)
    rows = [(r[0], r[2]) for r in c.table.tolist() if r[0] >= 0]
    outside = gaps(rows, c.x.numel())
    poisoned = torch.where(outside, torch.nan, c.add)
    assert c.add.numel() > GAP
    for messages, accumulate in ((1, False), (2, True), (3, False), (3, True)):
        arguments = (wires[:messages], poisoned, 0.3, accumulate, skip)
        expected = decode("reference", form, c, *arguments)
        assert same(decode(backend, form, c, *arguments), expected), (form, messages, accumulate)
    narrow = decode(backend, form, c, wires, poisoned.bfloat16(), 0.3, False, skip)
    expected = decode("reference", form, c, wires, poisoned, 0.3, False, skip)
    assert torch.equal(narrow[~outside], expected[~outside].bfloat16()), form
