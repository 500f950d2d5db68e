"""Two means on GPU kernels answers to the reference bit for bit."""

from __future__ import annotations

import pytest

from tests.ops.formats import Coded, codebook, ternary, two_means
from tests.ops.interpreted.agreement import BACKENDS, check_decode, check_encode

FORMATS = [*two_means.FORMATS, two_means._form(4112), two_means._form(8192)]


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_encode(backend: str, form: Coded) -> None:
    check_encode(backend, form)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_decode(backend: str, form: Coded) -> None:
    check_decode(backend, form)
