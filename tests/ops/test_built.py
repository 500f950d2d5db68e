"""Where there is a compiler the kernels are there: tests that skip without them must not hide a build that failed."""

from __future__ import annotations

import os
import shutil

import pytest

from compcomm.ops import native

COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here, so no native library is due")
@pytest.mark.skipif("COMPCOMM_BACKEND" in os.environ, reason="COMPCOMM_BACKEND chooses the backend by hand")
def test_the_native_library_was_built() -> None:
    assert native.available(), f"{COMPILER} is here and the native library is not: pip install -e . failed to build it"
    assert "baseline" in native.isas()
