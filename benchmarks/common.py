"""What every result file says about where it was measured: hardware, versions, commit."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import compcomm
from compcomm.ops import native


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory in bytes, accelerators, instruction set of the kernels."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "isa": native.isa(),
        "threads": torch.get_num_threads(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(tuple(map(str.strip, line.split(":", 1))) for line in lines if ":" in line)
    family = f"family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else platform.machine()
    return f"{fields.get('model name', platform.machine())} ({family})"


def versions() -> dict[str, str]:
    """Python, torch, compcomm and the system."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compcomm": getattr(compcomm, "__version__", "0.1.0"),
        "system": f"{platform.system()} {platform.release()}",
    }


ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ("benchmarks/results", "benchmarks/RESULTS.md", "runs")
"""What benchmarks write: changes there do not change what is measured."""


def commit(root: Path = ROOT) -> str:
    """The commit of this checkout, with "+" when files other than results differ from it; "unknown" outside one."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        apart = [f":(exclude,top){path}" for path in OUTPUT]
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "--", ":/", *apart) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write(path: str | Path, benchmark: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """One JSON file per run: benchmark, hardware, versions, commit, whatever else describes the run, and the rows."""
    document = {
        "benchmark": benchmark,
        "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
        **more,
        "rows": rows,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(document, indent=1) + "\n")
