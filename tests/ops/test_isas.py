"""For which instruction sets the library is built, and what the loader says of one that was built for others."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from compcomm.ops import native
from tests.ops.emulated import COMPILER, CSRC
from tests.patience import patience

needs_cmake = pytest.mark.skipif(not (shutil.which("cmake") and COMPILER), reason="no cmake or no compiler here")


def configure(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["cmake", "-S", str(CSRC), "-B", str(folder), "-DCC_BUILD_CUDA=off", *options],
        env={**{k: v for k, v in os.environ.items() if k != "CC_ISAS"}, **environment},
        capture_output=True,
        text=True,
        timeout=patience(100),
    )


def sets(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if "compcomm: kernels for" in line)
    return line.rpartition(" ")[2].split(";")


@needs_cmake
def test_all_sets_this_machines_or_those_named(tmp_path: Path) -> None:
    """The default, which wheels have, is all; an option of CMake goes before the environment, and can be changed."""
    every = sets(configure(tmp_path))
    assert every[0] == "baseline" and set(every) <= set(native.ISAS)
    own = sets(configure(tmp_path, CC_ISAS="native"))
    assert len(own) == 1 and (not native.isas() or own == [native.isas()[-1]])
    assert sets(configure(tmp_path, CC_ISAS="runnable")) == every[: every.index(own[0]) + 1]
    assert sets(configure(tmp_path, CC_ISAS=",".join(every[:2]))) == every[:2]
    wrong = configure(tmp_path, "-DCC_ISAS=sse9", CC_ISAS="all")
    assert wrong.returncode != 0 and "CC_ISAS=sse9: choose all, native, runnable, or some of" in wrong.stderr


@needs_cmake
def test_a_library_for_other_processors_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a folder is copied to an older machine: no illegal instruction, but the torch reference and the cure."""
    for built in (8, 1):  # 8: a set that no processor has
        made = tmp_path / f"libcompcomm_{built}.so"
        command = [str(COMPILER), "-shared", "-fPIC", f"-DCC_BUILT={built}", "-o", str(made), str(CSRC / "isa.cpp")]
        subprocess.run(command, check=True, timeout=patience(60))
        monkeypatch.setenv("COMPCOMM_LIBRARY", str(made))
        with caplog.at_level(logging.WARNING, logger="compcomm"):
            found = native._load()
        assert (found is None) is (built == 8)
        assert found is None or found.cc_isa() == found.cc_isa_best() == 0, "the baseline is used"
    assert caplog.text.count("was built for other processors; rebuild it") == 1
