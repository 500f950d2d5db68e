"""Where there is a compiler the kernels are there: tests that skip without them must not hide a build that failed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from compcomm.ops import native

CSRC = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here, so no native library is due")
@pytest.mark.skipif("COMPCOMM_BACKEND" in os.environ, reason="COMPCOMM_BACKEND chooses the backend by hand")
def test_the_native_library_was_built() -> None:
    assert native.available(), f"{COMPILER} is here and the native library is not: pip install -e . failed to build it"
    assert "baseline" in native.isas()


@pytest.mark.skipif(not native.available(), reason="no native library")
def test_every_kernel_is_exported() -> None:
    """A kernel that the header does not declare is hidden, and its op would run on the reference unnoticed."""
    defined = {n for f in (CSRC / "cpu").glob("*.cpp") for n in re.findall(r"CC_KERNEL\((cc_\w+)", f.read_text())}
    assert len(defined) > 40
    assert [name for name in sorted(defined) if not hasattr(native._library, name)] == []
    asked = {
        n for f in (CSRC.parent / "compcomm/ops").glob("*.py") for n in re.findall(r'"(?:cc_)?(\w+)"', f.read_text())
    }
    inner = {"cc_philox"}  # for the tests alone
    assert sorted(name for name in defined - inner if name.removeprefix("cc_") not in asked) == []
