"""Dense, cast and sign on GPU kernels answer to the reference bit for bit."""

from __future__ import annotations

import pytest

from tests.ops.dense_case import Format
from tests.ops.interpreted.agreement import BACKENDS, check_decode, check_encode

FORMATS = [
    Format("dense"),
    Format("cast"),
    Format("cast", flag=True),
    Format("sign"),
    Format("sign", flag=True),
    Format("sign", block=16),
    Format("sign", block=48),
]


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_encode(backend: str, form: Format) -> None:
    check_encode(backend, form)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_decode(backend: str, form: Format) -> None:
    check_decode(backend, form)
