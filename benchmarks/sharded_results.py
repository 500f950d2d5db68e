"""The results page's part on sharded models and two levels, from the files of `sharded.py` that are there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from cells import size, table, times

HOSTS = {"fsdp2": "FSDP2", "hsdp": "HSDP", "ddp": "DDP", "hierarchical": "DDP, two levels"}


def section(folder: Path) -> str:
    """All of it; empty without files."""
    paths = {kind: folder / f"sharded-{kind}.json" for kind in ("links", "loopback", "losses")}
    found = {kind: json.loads(path.read_text()) for kind, path in paths.items() if path.is_file()}
    makers = {"links": links, "loopback": loopback, "losses": losses}
    parts = [make(found[kind]) for kind, make in makers.items() if kind in found]
    return "\n\n".join([*parts, asked(found.values())] if parts else [])


def links(found: dict[str, Any]) -> str:
    rows = [
        (
            *named(r),
            f"{r['seconds']:.3f}",
            times(r["speedup"]),
            size(r["bytes_per_step"]),
            f"{r['state_bytes_per_parameter']:.2f}",
        )
        for r in found["rows"]
    ]
    note = found["lab"]
    columns = ["host", "reducer", "weights, or inside a node", "s per step", "faster", "bytes per node", "state"]
    return (
        f"**Steps over links.** {found['rows'][0]['parameters'] / 1e6:.2f} M parameters, {found['link']} "
        f"(`launch/netlab --hosts {note['hosts']} --ranks-per-host {note['ranks_per_host']} --rate {note['rate']} -- "
        f"python benchmarks/sharded.py links`): whole training steps of all rows in turns, on the slowest rank, and "
        f"what a node sends in one, gathered weights included. Faster: than the same host without a reducer, two "
        f"levels than DDP. State: bytes that a rank keeps for each parameter of the whole model.\n\n"
        f"{table(columns, rows)}"
    )


def loopback(found: dict[str, Any]) -> str:
    rows = [(*named(r)[:2], f"{r['seconds'] * 1e3:.1f}", f"{1 / r['speedup']:.2f}") for r in found["rows"]]
    return (
        f"**What `Exact()` costs** where bytes are free: the same model and {found['rows'][0]['world_size']} ranks on "
        f"loopback (`torchrun --nproc-per-node 4 benchmarks/sharded.py loopback`).\n\n"
        f"{table(['host', 'reducer', 'ms per step', 'against no reducer'], rows)}"
    )


def losses(found: dict[str, Any]) -> str:
    first = found["rows"][0]
    lengths = list(first["losses"])
    rows = [
        (*named(r)[1:], *(f"{fmean(r['losses'][n]):.4f} ({r['gap'][n]:+.4f})" for n in lengths)) for r in found["rows"]
    ]
    columns = ["reducer", "weights", *(f"after {n} steps" for n in lengths)]
    return (
        f"**Losses of FSDP2** on {found['data']}: training loss of {first['world_size']} ranks, mean of the last five "
        f"steps and of {len(first['losses'][lengths[0]])} seeds, and in brackets its distance from that of the first "
        f"row (`torchrun --nproc-per-node 4 benchmarks/sharded.py losses`).\n\n{table(columns, rows)}"
    )


def asked(found: Iterable[dict[str, Any]]) -> str:
    """Targets, whether reached or not."""
    lines = [
        (what(t["what"]), f"{number(t['target'])}", f"{number(t['found'])}", "yes" if t["reached"] else "no")
        for one in found
        for t in one["targets"]
    ]
    return "What was asked of them (bytes: within 2 %):\n\n" + table(["what", "asked", "measured", "reached"], lines)


def named(row: dict[str, Any]) -> tuple[str, str, str]:
    """Host, reducer, and what codes weights or, of two levels, gradients inside a node."""
    coder = row["weights"] or row.get("inside")
    return HOSTS[row["host"]], f"`{row['reducer']}`", f"`{coder}`" if coder else "-"


def what(text: str) -> str:
    for name, words in HOSTS.items():
        text = text.replace(f"{name}, ", f"{words}, ")
    return text


def number(value: float) -> str:
    return size(value) if value >= 1e3 else f"{value:.3g}"
