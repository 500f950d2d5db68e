"""The results page's part on optimizers with compressed momentum, from the files that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cells import size, spread, table, times

Row = dict[str, Any]
TASKS = {"digits": "Digits", "charlm": "A character transformer"}
MODELS = {"resnet50": "ResNet-50", "gpt2": "GPT-2 small"}


def section(folder: Path) -> str:
    """All of it; empty without files."""
    parts = [
        *(convergence(read(folder, f"convergence-{task}"), TASKS[task]) for task in TASKS),
        throughput(folder),
        *(arithmetic(json.loads(path.read_text())) for path in sorted(folder.glob("optimizers-arithmetic*.json"))),
        model(read(folder, "model")),
    ]
    return "\n\n".join(part for part in parts if part)


def read(folder: Path, name: str) -> Row | None:
    path = folder / f"optimizers-{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def convergence(found: Row | None, what: str) -> str:
    if found is None:
        return ""
    accuracy = any("accuracy" in r for r in found["summary"])
    columns = [
        "method",
        "validation loss",
        "to the yardstick",
        "mean over the run",
        "to the yardstick",
        *(["test accuracy"] if accuracy else []),
        "bytes per step",
        "fewer than fp16",
        "in the last phase",
    ]
    rows = [
        (
            r["method"],
            spread(r, "loss"),
            beside(r, "loss"),
            spread(r, "area"),
            beside(r, "area"),
            *([spread(r, "accuracy", 3)] if accuracy else []),
            size(r["bytes_per_step"]),
            times(r["ratio"]),
            last(r),
        )
        for r in found["summary"]
    ]
    first = found["rows"][0]
    how = f"--task {found['task']} --steps {found['steps']} --local-steps {found['local_steps']}"
    command = f"python benchmarks/optimizers.py convergence {how}"
    if found["lab"]:
        command = f"launch/netlab --hosts {found['lab']['hosts']} --rate {found['lab']['rate']} -- {command}"
    return (
        f"**{what} under optimizers with compressed momentum,** {first['world_size']} workers, {found['steps']} steps, "
        f"{found['seeds']} seeds, Adam's learning rate {found['setting']['rate']:g}, LAMB's "
        f"{found['setting']['lamb_rate']:g}, `{found['compressor']}`, up to {found['local_steps']} local steps of 0/1 "
        f"Adam (`{command}`). Bytes are the card's, against those of Adam with PyTorch's fp16 hook. The yardstick is "
        f"Adam, and LAMB for 1-bit LAMB; in brackets where the difference of the means lies against the standard "
        f"deviation of the yardstick's own runs.{said(found['summary'])}\n\n"
        f"{table(columns, rows)}\n\n"
        f"![loss against steps and bytes](results/optimizers-convergence-{found['task']}.png)"
    )


def said(summary: list[Row]) -> str:
    """1-bit Adam's losses, in a sentence for each scale."""
    return "".join(sentence(r) for r in summary if r["method"].startswith("1-bit Adam") and r["loss_verdict"])


def sentence(row: Row) -> str:
    name = row["method"]
    if row["loss"] is None:
        return f" {name} diverged."
    if row["loss_verdict"] == row["area_verdict"] == "within":
        return f" {name}: end loss and mean loss are both within Adam's noise."
    return (
        f" {name}: the end loss is {row['loss_verdict']} Adam's noise ({row['loss_difference']:+.4f}), the mean loss "
        f"{row['area_verdict']} it ({row['area_difference']:+.4f})."
    )


def beside(row: Row, key: str) -> str:
    difference, verdict = row[f"{key}_difference"], row[f"{key}_verdict"]
    if difference is None:
        return verdict or "-"
    return f"{difference:+.4f}" + (f" ({verdict})" if verdict else "")


def last(row: Row) -> str:
    """The last phase's ratio; with local steps also as a multiple of their number."""
    if len(row["phases"]) == 1:
        return "-"
    each = f" = {row['interval']} x {row['last_ratio'] / row['interval']:.1f}" if row["interval"] > 1 else ""
    return times(row["last_ratio"]) + each


def throughput(folder: Path) -> str:
    """One line for each model and link."""
    files = [json.loads(p.read_text()) for p in sorted(folder.glob("optimizers-throughput-*.json"))]
    if not files:
        return ""
    names = list(dict.fromkeys(r["contestant"] for found in files for r in found["rows"]))
    ours = [n for n in names if n in ("1-bit Adam", "0/1 Adam")]
    lines: list[tuple[str, ...]] = []
    for found in files:
        held = {r["contestant"]: r for r in found["rows"]}
        base = held.get("fp16, Adam", {}).get("bytes_sent")
        lines.append(
            (
                f"{MODELS.get(found['model'], Path(found['model']).stem)}, {found['link']}",
                *(seconds(held.get(name)) for name in names),
                *(times(base / held[n]["bytes_sent"]) if base and n in held else "-" for n in ours),
            )
        )
    first = files[0]
    columns = ["model, link", *names, *(f"fewer bytes: {n}" for n in ours)]
    return (
        f"**A step with an optimizer,** seconds: DDP on parameters of real shapes, forward, {first['wait']:g} s of "
        f"waiting in place of compute, backward, `step()` (`launch/netlab --hosts N --rate RATE -- python "
        f"benchmarks/optimizers.py throughput --model NAME`). 1-bit Adam in its compressed phase; 0/1 Adam with an "
        f"exchange every {first['local_steps']} steps, the mean over them. In brackets how many times sooner than the "
        f"fp16 hook with Adam, and that if the hook could hide the whole wait behind its exchange, which it cannot "
        f"here. All hosts share two cores; \"no exchange\" is the floor that they make.\n\n{table(columns, lines)}\n\n"
        f"![seconds per step](results/optimizers-throughput.png)"
    )  # fmt: skip


def seconds(row: Row | None) -> str:
    if row is None:
        return "-"
    if row["contestant"] not in ("1-bit Adam", "0/1 Adam") or row["speedup"] is None:
        return f"{row['seconds']:.3g}"
    return f"{row['seconds']:.3g} ({times(row['speedup'])}, {times(row['speedup_hidden'])})"


def arithmetic(found: Row) -> str:
    """One machine's; a file of another machine may lie beside it."""
    models = list(dict.fromkeys(r["model"] for r in found["rows"]))
    cells = {(r["model"], r["call"]): (f"{r['seconds'] * 1e3:.1f}", times(r["ratio"])) for r in found["rows"]}
    names = dict.fromkeys(r["call"] for r in found["rows"])
    rows = [(name, *(text for m in models for text in cells[m, name])) for name in names]
    columns = ["call", *(text for m in models for text in (f"{MODELS.get(m, Path(m).stem)}, ms", "of Adam(fused)"))]
    return (
        f"**What an optimizer computes itself,** {found['hardware']['cpu']}, one thread, no exchange, each call in "
        "turn with `torch.optim.Adam(fused=True)` (`python benchmarks/optimizers.py arithmetic`).\n\n"
        + table(columns, rows)
    )


def model(found: Row | None) -> str:
    if found is None:
        return ""
    warm = found["warm_up"]
    rows = [
        (
            f"{'a link for each GPU' if r['share'] == 1 else str(r['share']) + ' GPUs share a link'}, "
            f"{'Adam hides its compute' if r['overlap'] else 'no overlap'}",
            f"{r['dense_seconds'] * 1e3:.0f}",
            f"{r['compressed_seconds'] * 1e3:.0f}",
            times(r["speedup"]),
            *(times(r[f"end_to_end_{w}"]) for w in warm),
        )
        for r in found["rows"]
    ]
    published = found["published"]
    rows.append(("published", "-", "-", times(published["compressed"]), times(published["end_to_end"]), "-"))
    columns = ["setting", "Adam, ms", "compressed phase, ms", "sooner", *(f"end to end, {w:.0%} warm-up" for w in warm)]
    return (
        f"**Predicted, not measured:** 1-bit Adam on {found['model']} ({found['numel'] / 1e6:.0f} M parameters), "
        f"{found['rows'][0]['ranks']} GPUs, {found['bits_per_second'] / 1e9:g} Gbit/s: the cost model with the exact "
        f"payload and the compute of a published profile; coding on a GPU is not in it (`python "
        f"benchmarks/optimizers.py model`).\n\n{table(columns, rows)}"
    )
