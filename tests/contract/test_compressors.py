"""Every exported compressor keeps the contract."""

from __future__ import annotations

from typing import Any

import compcomm as cc
from compcomm.testing import COMPRESSOR_CHECKS, backends, payload, properties

from .cases import COMPRESSORS
from .selection import hold, pairs

# What every mode has a formula of its own for (delta and omega) every case runs. Kernels against the reference have
# tests of their own, mode by mode, in tests/ops: here by turns.
COSTLY = (
    backends.gives_the_same_bits_on_every_backend,
    properties.is_unbiased_as_declared,
    payload.keeps_non_finite_values_out,
    payload.decodes_many_at_once,
)
TURNS = 4


@pairs(COMPRESSORS, COMPRESSOR_CHECKS, COSTLY, TURNS)
def test_contract(case: cc.Compressor, checks: Any) -> None:
    hold(case, checks)
