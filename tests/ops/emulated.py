"""The CUDA kernels compiled for the host: the sources of ``csrc/cuda`` under its emulator, so that they run without a
GPU. Built once per state of the sources, into ``build/emulated``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
COMPILER = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
FLAGS = (
    "-std=c++17", "-O2", "-DCC_EMULATE", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-pthread", f"-I{CSRC / 'include'}",
)  # fmt: skip


def sources() -> list[Path]:
    return sorted((CSRC / "cuda").glob("*.cu"))


@cache
def library() -> Path:
    """The library, built where it is not there yet (several processes may want it at once)."""
    assert COMPILER is not None
    used = [*sorted((CSRC / "cuda").iterdir()), *sorted((CSRC / "include").iterdir()), Path(__file__)]
    key = hashlib.sha256(b"".join(p.read_bytes() for p in used)).hexdigest()[:16]
    path = ROOT / "build" / "emulated" / f"libcompcomm_cuda_{key}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(f".{os.getpid()}")
    files = [f for source in sources() for f in ("-x", "c++", str(source))]
    subprocess.run([COMPILER, *FLAGS, "-shared", "-o", str(made), *files], check=True)
    made.replace(path)
    for old in path.parent.glob("libcompcomm_cuda_*.so"):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def choose() -> None:
    """Backend "cuda" means these kernels from now on; called before it is first used. Not where there is a GPU, whose
    kernels it would hide, nor where there is no compiler (then they are missing, and tests skip)."""
    if COMPILER is not None and not torch.cuda.is_available():
        os.environ.setdefault("COMPCOMM_CUDA_LIBRARY", str(library()))
