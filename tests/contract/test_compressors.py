"""Every exported compressor keeps the contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import compcomm as cc
from compcomm.testing import COMPRESSOR_CHECKS

from .cases import COMPRESSORS

ALL = [c for cases in COMPRESSORS.values() for c in cases]


@pytest.mark.parametrize("check", COMPRESSOR_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_contract(compressor: cc.Compressor, check: Callable[[cc.Compressor], None]) -> None:
    check(compressor)
