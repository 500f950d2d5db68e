"""The public names: each exported class has a case, and each name exists."""

from __future__ import annotations

import pytest

import compcomm as cc

from .cases import COMPRESSORS, REDUCERS

EXPORTS = {name: getattr(cc, name) for name in cc.__all__}


def _concrete(base: type) -> list[type]:
    found = [v for v in EXPORTS.values() if isinstance(v, type) and issubclass(v, base) and v is not base]
    assert found
    return found


@pytest.mark.parametrize("cls", _concrete(cc.Compressor), ids=lambda c: c.__name__)
def test_every_compressor_has_a_case(cls: type[cc.Compressor]) -> None:
    assert COMPRESSORS.get(cls), f"add a case of {cls.__name__} to COMPRESSORS in tests/contract/cases.py"
    assert all(type(c) is cls for c in COMPRESSORS[cls])


@pytest.mark.parametrize("cls", _concrete(cc.Reducer), ids=lambda c: c.__name__)
def test_every_reducer_has_a_case(cls: type[cc.Reducer]) -> None:
    assert REDUCERS.get(cls), f"add a case of {cls.__name__} to REDUCERS in tests/contract/cases.py"
    assert all(type(r) is cls for r in REDUCERS[cls])


@pytest.mark.parametrize("cls", [*_concrete(cc.Compressor), *_concrete(cc.Reducer)], ids=lambda c: c.__name__)
def test_every_description_says_what_it_is(cls: type) -> None:
    assert cls.__doc__ and len(cls.__doc__.splitlines()) > 3, f"{cls.__name__} has no docstring that teaches"


def test_names_are_sorted_unique_and_there() -> None:
    assert len(set(cc.__all__)) == len(cc.__all__)
    assert all(hasattr(cc, name) for name in cc.__all__)
