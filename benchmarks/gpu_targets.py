"""What the kernels should reach on a GPU, and the results page's part on it: nothing here needs a GPU, or torch.

A target belongs to a row of ``gpu_kernels.py``: an op in one type. Most are shares of the bandwidth of a copy of as
many elements of that type in the same run; bytes that must move are counted, not those that a kernel happens to move.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cells import table

OURS = ("triton", "cuda")
FILE = "kernels-cuda.json"
Row = dict[str, Any]


class Moves(NamedTuple):
    """Bytes per element: ``passes`` over vectors of the gradient's type, and ``other`` bytes of any type."""

    what: str
    passes: int
    other: float = 0.0

    def bytes(self, itemsize: int) -> float:
        return self.passes * itemsize + self.other

    def __str__(self) -> str:
        return f"{self.what}: {self.passes} x type" + (f" + {self.other:.4g}" if self.other else "")


SCALE = 4 / 512  # an fp32 scale per block of 512
_FEED = "x and add read, x written"
MOVES = {
    "qsgd4_encode nearest": Moves(f"{_FEED}, codes and scales written", 3, 4 / 8 + SCALE),
    "qsgd4_encode stochastic": Moves(f"{_FEED}, codes and scales written", 3, 4 / 8 + SCALE),
    "sign_encode": Moves(f"{_FEED}, bits and scales written", 3, 1 / 8 + SCALE),
    "qsgd4_decode W=8": Moves("eight messages read, out read and written", 2, 8 * (4 / 8 + SCALE)),
    "sign_decode W=8": Moves("eight messages read, out read and written", 2, 8 * (1 / 8 + SCALE)),
    "topk_encode 1 %, cold": Moves(_FEED, 3),
    "topk_encode 1 %, warm": Moves(_FEED, 3),
    "topk_encode 1 %, sampled": Moves(f"{_FEED}, offsets and values written", 3, 0.06),
    "hadamard_forward 2^15": Moves(f"{_FEED}, fp32 z written", 3, 4),
    "hadamard_inverse 2^15": Moves("fp32 z read, out read and written", 2, 4),
    "torch.topk 1 %": Moves("|x| read, values and int64 indices written", 1, 0.12),
}
"""By row. A row "<op>, ResNet-50" or "<op>, one row" moves what "<op>" does."""
SHARES = {
    "qsgd4_encode nearest": 0.85,
    "qsgd4_encode stochastic": 0.85,
    "sign_encode": 0.85,
    "qsgd4_decode W=8": 0.85,
    "sign_decode W=8": 0.85,
    "topk_encode 1 %, cold": 0.5,
    "topk_encode 1 %, warm": 0.5,
    "topk_encode 1 %, sampled": 0.7,
    "hadamard_forward 2^15": 0.75,
    "hadamard_inverse 2^15": 0.75,
}
"""The least share of the copy bandwidth, in fp32."""
NARROW = 0.05
"""In bf16 the share may be so much below that in fp32."""
TOPK = 10.0
"""As many times faster than torch.topk exact top-k must be, error feedback included."""
SEGMENTED = ("qsgd4_encode nearest", "sign_encode", "topk_encode 1 %, cold", "qsgd4_decode W=8")
"""Measured on ResNet-50's tensors in one call as well, and on one row of as many elements."""
SLOWER = 1.1
"""As many times longer the tensors may take."""


def moves(op: str) -> Moves:
    return MOVES[op.removesuffix(", ResNet-50").removesuffix(", one row")]


def targets() -> list[tuple[str, str, str, float]]:
    """(op, type, what is asked, the number), in the order of the page."""
    shares = [(op, "float32", "share", share) for op, share in SHARES.items()]
    narrow = [(op, "bfloat16", "points below fp32", NARROW) for op in SHARES]
    topk = [(f"topk_encode 1 %, {hint}", "float32", "times torch.topk's speed", TOPK) for hint in ("cold", "warm")]
    return [*shares, *narrow, *topk, *((f"{op}, ResNet-50", "float32", "times one row", SLOWER) for op in SEGMENTED)]


def judge(rows: Sequence[Row]) -> None:
    """Says in each row of ours what was asked of it: ``targets``, a list of {what, target, found, reached}."""
    found = {(r["op"], r["dtype"], r["backend"]): r for r in rows if "seconds" in r}
    for (op, dtype, backend), row in found.items():
        row["targets"] = []
        for asked, due, what, target in targets() if backend in OURS else ():
            if (asked, due) != (op, dtype):
                continue
            value: float | None = row["share"]
            if what == "points below fp32":
                wide = found.get((op, "float32", backend))
                value = None if wide is None else wide["share"] - row["share"]
            elif what == "times torch.topk's speed":
                other = found.get(("torch.topk 1 %", dtype, "torch"))
                value = None if other is None else other["seconds"] / row["seconds"]
            elif what == "times one row":
                flat = found.get((op.replace("ResNet-50", "one row"), dtype, backend))
                value = None if flat is None else row["seconds"] / flat["seconds"]
            if value is not None:
                most = what in ("points below fp32", "times one row")
                reached = value <= target if most else value >= target
                row["targets"].append({"what": what, "target": target, "found": value, "reached": reached})


def section(folder: Path) -> str:
    """The page's table: what was measured against every target, or that nothing has been."""
    path = folder / FILE
    found = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    lines: list[tuple[str, ...]] = []
    for op, dtype, what, target in targets():
        measured = [
            (row, t)
            for row in found["rows"]
            for t in row.get("targets", ())
            if (row["op"], row["dtype"], t["what"]) == (op, dtype, what)
        ]
        short, itemsize = {"float32": ("fp32", 4), "bfloat16": ("bf16", 2)}[dtype]
        head = (f"`{op}`", short, f"{moves(op).bytes(itemsize):.4g}", _asked(what, target))
        lines += [
            (
                *head, _number(what, t["found"]), "yes" if t["reached"] else "no", row["backend"],
                f"{row['seconds'] * 1e3:.3f}", f"{row['gigabytes_per_second']:.0f}", *_peers(found["rows"], row),
            )
            for row, t in measured
        ] or [(*head, "not yet measured", *["-"] * 6)]  # fmt: skip
    columns = (
        "op", "type", "bytes per element", "asked", "measured", "reached", "backend", "ms", "GB/s",
        "torch operators, ms", "torch.compile, ms",
    )  # fmt: skip
    return f"{_head(found)}\n\n{table(columns, lines)}"


def _asked(what: str, target: float) -> str:
    return {
        "share": f"{target:.0%} of copy",
        "points below fp32": f"at most {100 * target:.0f} points below fp32",
        "times torch.topk's speed": f"{target:g}x torch.topk",
        "times one row": f"at most {target:g}x one row",
    }[what]


def _number(what: str, value: float) -> str:
    return {"share": f"{value:.1%}", "points below fp32": f"{100 * value:.1f} points"}.get(what, f"{value:.2f}x")


def _peers(rows: Sequence[Row], own: Row) -> list[str]:
    """Milliseconds of the same job by torch operators, and by torch.compile."""
    job = own["op"].replace("warm", "cold"), own["dtype"]
    times = {r["backend"]: r["seconds"] for r in rows if "seconds" in r and (r["op"], r["dtype"]) == job}
    return [f"{times[b] * 1e3:.3f}" if b in times else "-" for b in ("reference", "torch.compile")]


def _head(found: dict[str, Any]) -> str:
    text = (
        "**Kernels on a GPU.** Medians with nothing of the vectors in the cache, against a copy of as many elements in "
        "the same run; bytes are those that must move: vectors read and written once, and the payload (`python "
        "benchmarks/kernels.py --device cuda`). "
    )
    if not found["rows"]:
        return text + (
            "No GPU was there so far: every figure below is a target and not yet measured. The kernels' results are "
            "tested to the bit in Triton's interpreter, and they compile for sm_80 and sm_90."
        )
    gpu, numel = found["gpu"], max(r["numel"] for r in found["rows"])
    return text + (
        f"{numel / 2**20:.0f} Mi elements on one {gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']}, torch "
        f"{found['versions']['torch']}, Triton {gpu['triton']}. More rows, and other ways to do the same, are in "
        f"`benchmarks/results/{FILE}`."
    )
