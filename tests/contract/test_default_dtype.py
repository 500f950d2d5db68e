"""``torch.set_default_dtype`` is the user's: no tensor of ours takes its dtype from it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.ops import backend
from compcomm.testing.simulated import gradients, step, whole
from tests.ops.calls import calls

from .cases import COMPRESSORS, REDUCERS

PACKAGE = Path(cc.__file__).parent
FACTORIES = {
    *("arange", "empty", "eye", "full", "linspace", "logspace"),
    *("ones", "rand", "randn", "scalar_tensor", "tensor", "zeros"),
}


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, dtypes and keys too."""
    if isinstance(a, Tensor):
        fits = isinstance(b, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)
        return fits and bool((a.reshape(-1).view(torch.uint8) == b.reshape(-1).view(torch.uint8)).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b or a == b


def test_every_factory_is_told_the_dtype() -> None:
    silent: list[str] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name), keywords=given):
                    if name in FACTORIES and not {"dtype", "out"} & {k.arg for k in given}:
                        silent.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    assert not silent, "\n".join(silent)


GRADIENTS = [gradients(2, t) for t in range(3)]


def lives(reducer: cc.Reducer | cc.Compressor) -> Any:
    """Three steps of two ranks: the means, and what is left in memory."""
    simulator = cc.Simulator(reducer, 2, seed=3)
    means = [step(simulator, given, whole(t)) for t, given in enumerate(GRADIENTS)]
    return means, [store.state_dict() for store in simulator.stores]


@pytest.mark.slow
def test_no_reducer_depends_on_it() -> None:
    """Integers divided by integers, or times a Python number, are of the default dtype, and no reader sees that."""
    wrong: list[str] = []
    for kinds in (REDUCERS, COMPRESSORS):
        for r in (r for found in kinds.values() for r in found):
            due = lives(r)
            with default(torch.bfloat16):
                try:
                    if not same(due, lives(r)):
                        wrong.append(f"{r!r}: other bits")
                except (TypeError, ValueError, RuntimeError) as error:
                    wrong.append(f"{r!r}: {error}")
    assert not wrong, "\n".join(wrong)


def test_no_reference_depends_on_it() -> None:
    for name, make in dict(reversed(calls())).items():
        given = make()

        def run(op: str = name, arguments: Any = given) -> Any:
            own = deepcopy(arguments)
            return getattr(torch.ops.compcomm, op)(*own), own

        with backend("reference"):
            due = run()
            with default(torch.bfloat16):
                assert same(due, run()), name
