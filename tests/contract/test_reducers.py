"""Every exported reducer keeps the contract, in the simulator."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import compcomm as cc
from compcomm.testing import REDUCER_CHECKS

from .cases import REDUCERS

ALL = [r for cases in REDUCERS.values() for r in cases]


@pytest.mark.parametrize("check", REDUCER_CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("reducer", ALL, ids=repr)
def test_contract(reducer: cc.Reducer, check: Callable[[cc.Reducer], None]) -> None:
    check(reducer)
