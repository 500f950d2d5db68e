"""The owner's steps: two messages of zeros, with a residual and without."""

from __future__ import annotations

from typing import Any

import torch

from tests.ops.calls import Call
from tests.ops.calls.dense import SIZES
from tests.ops.dense_case import Format, case

FORMS = (Format("sign"), Format("qsgd"), Format("qsgd", bits=3, stochastic=True))


def reencode(form: Format, residual: bool) -> tuple[Any, ...]:
    """Arguments of ``<form>_recode``."""
    c = case(form, sizes=SIZES)
    wires, wire = torch.zeros(2, c.nbytes, dtype=torch.uint8), torch.zeros(c.nbytes, dtype=torch.uint8)
    skip, status = torch.zeros(5, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)
    tables = (wires, c.table.clone(), skip, wire, c.table)
    return (c.x if residual else None, *tables, status, 0.5, 1.0, *form.encode_tail(c.gain, 1, 0))


CALLS: list[Call] = [
    (f"{form.name}_reencode", lambda form=form, residual=residual: reencode(form, residual))
    for form in FORMS
    for residual in (True, False)
]
