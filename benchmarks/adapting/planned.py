"""The results page's part on the planner, from benchmarks/results/planner-*.json."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from cells import table


def section(folder: Path) -> str:
    """Predicted against measured; empty without files."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("planner-*.json"))]
    if not found:
        return ""
    found.sort(key=lambda f: (f["lab"]["hosts"], f["lab"]["bits_per_second"]))
    methods = [r["reducer"] for r in found[0]["rows"]]
    rows = [
        (
            f["link"],
            *(f"{r['predicted_seconds']:.3g} / {r['measured_seconds']:.3g}" for r in f["rows"]),
            f"`{f['recommended']}`",
            f"{behind(f):.2f}",
        )
        for f in found
    ]
    errors = [abs(r["error"]) for f in found for r in f["rows"]]
    near = sum(e <= 0.2 for e in errors)
    columns = ["setting", *(f"`{m}`" if m != "None" else "DDP" for m in methods), "recommended", "of the best"]
    return (
        f"**The planner against reality:** seconds of a step of ResNet-50's shapes with {found[0]['wait']:g} s of "
        f"waiting in place of computation, predicted / measured; all hosts share two cores (`launch/netlab --hosts N "
        f"--rate RATE --rank0-raw -- python benchmarks/planner.py`). What is predicted knows small collectives and the "
        f"kernels on a sample, measured by all ranks at once, and no step that it predicts. Within 20 %: {near} of "
        f"{len(errors)} cells; median error {100 * median(errors):.1f} %, largest {100 * max(errors):.0f} %. Last "
        f"column: the recommended method's measured step over the fastest one's.\n\n{table(columns, rows)}"
    )


def behind(found: dict[str, Any]) -> float:
    """The recommended method's measured seconds over the least."""
    seconds = {("DDP" if r["reducer"] == "None" else r["reducer"]): r["measured_seconds"] for r in found["rows"]}
    return seconds[found["recommended"]] / min(seconds.values())
