"""Which arguments of an op may be in half precision is settled when it is registered: those, and no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from compcomm.ops.schema import HALF
from tests.ops.calls import calls
from tests.ops.sparse_case import using

OPS = torch.ops.compcomm
FIRST = {op: make for op, make in reversed(list(calls()))}


@pytest.mark.parametrize("op", sorted(FIRST))
def test_what_may_not_be_half_is_refused(op: str) -> None:
    """The C++ kernels get addresses: what they take for something else must never reach them."""
    make: Callable[[], tuple[object, ...]] = FIRST[op]
    names = [a.name for a in getattr(OPS, op).default._schema.arguments]
    for i, (name, given) in enumerate(zip(names, make(), strict=False)):
        if isinstance(given, Tensor) and name not in HALF:
            wrong = list(make())
            wrong[i] = given.to(torch.bfloat16)
            with pytest.raises((TypeError, ValueError), match=f"compcomm.{op}: "):
                getattr(OPS, op)(*wrong)


@pytest.mark.parametrize("op", sorted(FIRST))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_may_be_half_is_computed_in_fp32(op: str, dtype: torch.dtype) -> None:
    """With half-precision tensors the kernels write what they would of fp32 tensors of the same numbers."""
    names = [a.name for a in getattr(OPS, op).default._schema.arguments]

    def run(narrow: bool) -> list[Tensor] | None:
        given = list(FIRST[op]())
        for i, (name, t) in enumerate(zip(names, given, strict=False)):
            if isinstance(t, Tensor) and name in HALF and t.dtype is torch.float32:
                given[i] = t.to(dtype) if narrow else t.to(dtype).float()
        try:
            getattr(OPS, op)(*given)
        except TypeError as error:  # its type is the op's own affair
            assert narrow and "must be torch." in str(error), error
            return None
        return [t.to(dtype) if name in HALF and t.dtype in (dtype, torch.float32) else t
                for name, t in zip(names, given, strict=False) if isinstance(t, Tensor)]  # fmt: skip

    with using(native.isas()[-1] if native.available() else "reference"):
        found, due = run(True), run(False)
    assert due is not None
    if found is not None:
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found, due, strict=True))
