"""QSGD, MinMax, natural compression and eight-bit floats on GPU kernels answer to the reference bit for bit."""

from __future__ import annotations

import pytest

from tests.ops.dense_case import Format
from tests.ops.formats import float8, minmax, natural
from tests.ops.interpreted.agreement import BACKENDS, check_decode, check_encode

FORMATS = [
    Format("qsgd"),
    Format("qsgd", bits=3, norm2=True, stochastic=True),
    *minmax.FORMATS[6:8], *natural.FORMATS[:3], *float8.FORMATS[:2],
]


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_encode(backend: str, form: Format) -> None:
    check_encode(backend, form)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_decode(backend: str, form: Format) -> None:
    check_decode(backend, form)
