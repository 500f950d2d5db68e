"""PowerSGD's ops: matrices of several tiles and of one, with a gradient and without."""

from __future__ import annotations

from typing import Any

import torch

from compcomm.compressors.sketch import quantiles
from tests.ops.calls import Call
from tests.ops.test_lowrank import Case, case


def made() -> Case:
    return case(((70, 300, 3), (5, 33, 2)))


def product(gradient: bool) -> tuple[Any, ...]:
    c = made()
    return (c.residual, c.gradient if gradient else None, c.p, c.q, c.table, torch.zeros(3, dtype=torch.uint8), 0.5)


def reconstruct(accumulate: bool, other: bool = False, out: bool = True) -> tuple[Any, ...]:
    c = made()
    own = (c.p + 1, c.q + 1) if other else (c.p, c.q)
    skip = torch.zeros(2, dtype=torch.uint8)
    return (c.residual, c.gradient if out else None, c.p, c.q, *own, c.table, skip, 0.7, accumulate, 1.0)


def factor(name: str) -> tuple[Any, ...]:
    c = made()
    return (getattr(c, name), c.lines[name])


CALLS: list[Call] = [
    ("lowrank_project", lambda: product(True)),
    ("lowrank_project", lambda: product(False)),
    ("lowrank_backproject", lambda: product(True)),
    ("lowrank_backproject", lambda: product(False)),
    ("lowrank_reconstruct", lambda: reconstruct(True)),
    ("lowrank_reconstruct", lambda: reconstruct(False, other=True)),
    ("lowrank_reconstruct", lambda: reconstruct(False, out=False)),
    ("lowrank_orthonormal", lambda: factor("q")),
    ("lowrank_refresh", lambda: (*factor("q"), quantiles(), 3)),
]
