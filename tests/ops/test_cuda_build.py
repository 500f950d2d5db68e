"""The CUDA library as it is built: every source compiles, the header says what it has, it loads without a driver."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fresh import Programs
from tests.ops.emulated import CSRC, ROOT, sources
from tests.patience import patience

NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc here, so no CUDA kernels can be compiled")
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake here")
HEADER = CSRC / "include" / "compcomm_cuda.h"


def declared() -> set[str]:
    return set(re.findall(r"CC_API\s[\w\s*]*?(cc_cuda_\w+)\(", HEADER.read_text()))


def configure(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["cmake", "-S", str(CSRC), "-B", str(folder), *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=patience(60),
    )


def build(folder: Path, target: str, timeout: float) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "--build", str(folder), "--target", target]
    return subprocess.run(command, capture_output=True, text=True, timeout=patience(timeout))


ONE = "-O0;-Xcicc=-O0;-gencode=arch=compute_90,code=compute_90"


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest) -> Path:
    """The library: the installed one where it is newer than the sources, else one that CMake builds like it, anew where
    a source has changed: with ``--full`` for all architectures, by default no further than to PTX, and not optimised.
    What the sources say is the same."""
    newest = max(p.stat().st_mtime for p in (*(CSRC / "cuda").iterdir(), HEADER, CSRC / "cuda.cmake"))
    for path in sorted(Path(p) / "compcomm" / "_lib" / "libcompcomm_cuda.so" for p in sys.path if p):
        if path.is_file() and path.stat().st_mtime > newest:
            return path
    full = request.config.getoption("full")
    folder = ROOT / "build" / ("cuda_full" if full else "cuda_tested")
    done = configure(folder, "-DCC_BUILD_CUDA=on", *([] if full else [f"-DCC_CUDA_CODE={ONE}"]))
    assert done.returncode == 0, done.stderr
    built = build(folder, "compcomm_cuda", 300)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "libcompcomm_cuda.so"


def test_every_function_of_the_header_is_defined_and_asked_for() -> None:
    defined = {n for s in sources() for n in re.findall(r"^[\w ]+\*? ?(cc_cuda_\w+)\(", s.read_text(), re.M)}
    assert declared() == defined
    asked = {
        n for f in (ROOT / "compcomm/ops/cuda").glob("*.py") for n in re.findall(r"\b(cc_cuda_\w+)\b", f.read_text())
    }
    assert {n for n in declared() if n not in asked} == set()


@needs_nvcc
@needs_cmake
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_library_has_what_the_header_says(library: Path) -> None:
    handle = ctypes.CDLL(str(library))
    assert [name for name in sorted(declared()) if not hasattr(handle, name)] == []
    assert handle.cc_cuda_abi_version() == 1 and handle.cc_cuda_emulated() == 0
    if shutil.which("nm"):
        listed = subprocess.check_output(["nm", "-D", "--defined-only", str(library)], text=True)
        names = {line.split()[-1] for line in listed.splitlines()}
        assert {n for n in names if not n.startswith("_")} == declared()
        needed = subprocess.check_output(["ldd", str(library)], text=True)
        assert "libcudart" not in needed and "libcuda." not in needed


CALL = """
import torch
from compcomm.ops import cuda
from tests.ops.calls import calls
assert not cuda.EMULATED and cuda.missing() == "CUDA C++ has no kernel for it"
for op, make in calls():
    if op in cuda.KERNELS:
        try:
            cuda.KERNELS[op](*make())
        except RuntimeError as error:
            print(error)
"""


@needs_nvcc
@needs_cmake
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_driver_it_loads_and_a_call_says_what_is_missing(library: Path, programs: Programs) -> None:
    done = programs.run(CALL, warm=True, COMPCOMM_CUDA_LIBRARY=str(library))
    assert done.returncode == 0, done.stderr
    messages = set(done.stdout.splitlines())
    assert {m.split(":")[0] for m in messages} >= {"compcomm.sign_encode", "compcomm.qsgd_reencode"}, messages
    for message in messages:
        assert "CUDA refused the launch: " in message and "install a GPU and its driver" in message
        assert "driver" in message and "backend('reference')" in message


@needs_cmake
def test_on_without_nvcc_is_an_error_that_says_so(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DCC_BUILD_CUDA=on", "-DCC_NVCC=FALSE")
    assert done.returncode != 0
    assert "CC_BUILD_CUDA=on, but nvcc is not there" in done.stderr and "CC_BUILD_CUDA=off" in done.stderr
    done = configure(tmp_path / "b", "-DCC_NVCC=FALSE", CC_BUILD_CUDA="on")
    assert done.returncode != 0 and "nvcc is not there" in done.stderr
    done = configure(tmp_path / "c", "-DCC_NVCC=FALSE", CC_BUILD_CUDA="sometimes")
    assert done.returncode != 0 and "choose auto, on or off" in done.stderr


@needs_cmake
def test_off_and_auto_without_nvcc_leave_it_out(tmp_path: Path) -> None:
    for option in ("-DCC_BUILD_CUDA=off", "-DCC_NVCC=FALSE"):
        done = configure(tmp_path / option, option)
        assert done.returncode == 0, done.stderr
        assert "no CUDA kernels" in done.stdout
        assert "compcomm_cuda" not in build(tmp_path / option, "help", 60).stdout


@needs_cmake
def test_auto_builds_the_rest_where_nvcc_fails(tmp_path: Path) -> None:
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho unsupported host compiler >&2\nexit 3\n")
    broken.chmod(0o755)
    for wanted, code in (("auto", 0), ("on", 1)):
        folder = tmp_path / wanted
        assert configure(folder, f"-DCC_NVCC={broken}", f"-DCC_BUILD_CUDA={wanted}").returncode == 0
        done = build(folder, "compcomm_cuda", 60)
        assert min(done.returncode, 1) == code, done.stdout + done.stderr
        assert "unsupported host compiler" in done.stdout + done.stderr
        assert ("nvcc failed" in done.stdout) == (wanted == "auto")


def test_without_the_library_nothing_is_registered_and_the_reason_said(programs: Programs) -> None:
    done = programs.run(
        "from compcomm.ops import cuda; print(cuda.KERNELS, cuda.EMULATED, cuda.missing())",
        warm=True,
        COMPCOMM_CUDA_LIBRARY="/nowhere/libcompcomm_cuda.so",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{} False /nowhere/libcompcomm_cuda.so cannot be loaded")
    assert "reinstall compcomm" in done.stdout
