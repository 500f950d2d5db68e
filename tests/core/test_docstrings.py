"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import compcomm
from tests.ops import emulated

emulated.choose()  # walking imports packages, and that of the CUDA kernels finds its library when it is imported
MODULES = ["compcomm", *(m.name for m in pkgutil.walk_packages(compcomm.__path__, "compcomm."))]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)  # every module imports on a plain install: optional packages come later
    assert doctest.testmod(module).failed == 0
