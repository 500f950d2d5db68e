"""Every exported compressor keeps the contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import compcomm as cc
from compcomm.testing import COMPRESSOR_CHECKS, payload, properties

from .cases import COMPRESSORS
from .selection import pairs

# What every mode has a kernel or a formula of its own for (backends, delta and omega) every case runs.
COSTLY = (properties.is_unbiased_as_declared, payload.keeps_non_finite_values_out, payload.decodes_many_at_once)


@pytest.mark.parametrize(("compressor", "check"), pairs(COMPRESSORS, COMPRESSOR_CHECKS, COSTLY))
def test_contract(compressor: cc.Compressor, check: Callable[[cc.Compressor], None]) -> None:
    check(compressor)
