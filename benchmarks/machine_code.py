"""Whether two builds of the C++ library run the same instructions: where they do, timings of kernels differ by noise
alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
# What the linker decides: where a branch goes, and where data lies that is addressed by the instruction pointer.
PLACES = (
    (re.compile(r"#.*"), ""),
    (re.compile(r"-?0x[0-9a-f]+\(%rip\)"), "(%rip)"),
    (re.compile(r"\b[0-9a-f]+ <[^>]*>"), "<>"),
)


def functions(library: Path) -> dict[str, Counter[str]]:
    """Each function's instructions as text, without what the linker decides; several may share a name."""
    done = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", str(library)], capture_output=True, text=True, check=True
    )
    found: dict[str, list[list[str]]] = {}
    lines: list[str] = []
    for line in done.stdout.splitlines():
        if (begins := FUNCTION.match(line)) is not None:
            lines = []
            found.setdefault(begins[1], []).append(lines)
        elif "\t" in line:
            code = line.partition("\t")[2]
            for pattern, text in PLACES:
                code = pattern.sub(text, code)
            if not code.startswith("nop") and "data16" not in code:  # what fills the space up to the next function
                lines.append(" ".join(code.split()))
    return {name: Counter("\n".join(code) for code in codes) for name, codes in found.items()}


def compare(before: Path, after: Path) -> dict[str, Any]:
    """``functions``: how many ``after`` has; ``same``: how many ``before`` has with the very same instructions, under
    the same name or another; ``changed``: the names of all others."""
    if shutil.which("objdump") is None:
        return {"not compared": "no objdump here (binutils)"}
    old, new = functions(before), functions(after)
    known = {code for codes in old.values() for code in codes}
    changed = sorted(name for name, codes in new.items() if not set(codes) <= known)
    return {"functions": len(new), "same": len(new) - len(changed), "changed": changed}
