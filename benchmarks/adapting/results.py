"""The results page's part on compression that chooses itself, from the files that are there."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from cells import size, spread, table, times

Row = dict[str, Any]
MODELS = {"digits": "digits' MLP", "transformer": "character transformer", "resnet50": "ResNet-50", "gpt2": "GPT-2"}
TASKS = {"digits": "Digits", "charlm": "A character transformer"}
SHAPES = {"charlm": "character transformer", "resnet50": "ResNet-50's shapes"}


def section(folder: Path) -> str:
    """All of it; empty without files."""
    parts = [
        gains(read(folder, "gains")),
        rivals(read(folder, "rivals")),
        *(training(read(folder, f"train-{task}"), what) for task, what in TASKS.items()),
        cost([read(folder, f"cost-{model}") for model in ("charlm", "resnet50")], read(folder, "phases")),
        allocation(read(folder, "allocation")),
        auto([json.loads(path.read_text()) for path in sorted(folder.glob("adaptive-auto*.json"))]),
    ]
    return "\n\n".join(part for part in parts if part)


def read(folder: Path, name: str) -> Row | None:
    path = folder / f"adaptive-{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def gains(found: Row | None) -> str:
    if found is None:
        return ""
    rows = [
        (
            f"{MODELS[r['model']]}, `{r['reducer']}`",
            f"{r['relative_error']:.3f}",
            times(r["uniform_ratio"]),
            times(r["chosen_ratio"]),
            times(r["gain"]),
            times(r["coded_gain"]),
        )
        for r in found["rows"]
    ]
    columns = ["model, one setting", "relative error", "fewer bytes", "L-GreCo", "gain", "in what is coded"]
    return (
        "**L-GreCo on recorded gradients:** fp32 bytes over bytes sent, for one setting and for the settings by layer "
        "that `LGreCo` chooses at the same sum of errors (never more, never more bytes: asserted). Exact parameters, "
        "indices and headers count; the last column leaves out what travels exact. Relative error is the sum of errors "
        "over the sum of norms: near 1, as of random densities, nearly every choice loses nearly all, and a gain says "
        f"little (`python benchmarks/adaptive.py gains`).\n\n{table(columns, rows)}\n\n"
        "![ratios](results/adaptive-gains.png)"
    )


def rivals(found: Row | None) -> str:
    if found is None:
        return ""
    rows = [
        (
            f"{MODELS[r['model']]}, {r['name']}",
            *(times(r[f"{kind}_ratio"]) for kind in ("norms", "squares")),
            size(r["norms_bytes"]),
            f"{r['norms_least']:.2g} to {r['norms_most']:.2g}",
        )
        for r in found["rows"]
    ]
    columns = ["model, rule", "ratio, equal sum of norms", "equal sum of squares", "bytes", "densities"]
    return (
        "**Rules for densities at equal error,** of the coded parameters alone: each rule at the scale at which it "
        "loses as much as `TopK(ratio=0.01)`, once counted as the sum of the layers' L2 errors (what L-GreCo bounds), "
        "once as the sum of their squares (what a global top-k makes least). L-GreCo's default candidates go from 1/16 "
        "to 16 times the one density, a global top-k goes to a single element "
        f"(`python benchmarks/adaptive.py rivals`).\n\n{table(columns, rows)}"
    )


def training(found: Row | None, what: str) -> str:
    if found is None:
        return ""
    rows = [
        (
            f"{r['name']}: `{r['reducer']}`",
            spread(r, "loss"),
            f"{mean(p[2] for p in r['curve'][1:]):.4f}",
            size(r["bytes_per_step"]),
            times(r["ratio"]),
            times(r["fewer_to_yardstick"]),
        )
        for r in found["rows"]
    ]
    columns = ["method", "validation loss", "mean over the run", "bytes per step", "fewer", "to the same loss"]
    return (
        f"**{what} under settings that change,** {found['world_size']} simulated workers, {found['steps']} steps, a "
        f"decision every {found['every']}, {found['rows'][0]['seeds']} seeds. Bytes are those of the whole run, and up "
        f"to the first decision the uniform setting's. Same bytes: the budget is the uniform setting's bytes, and the "
        f"error is made least. To the same loss: how many times fewer bytes than the uniform run (for L-GreCo on "
        f"Accordion, Accordion) until the mean loss stays where that ends, within one standard deviation of its runs; "
        f"-: it does not (`python benchmarks/adaptive.py train --task {found['task']} --steps {found['steps']} --every "
        f"{found['every']} --world {found['world_size']}`).\n\n"
        f"{table(columns, rows)}\n\n"
        f"![loss against bytes](results/adaptive-train-{found['task']}.png)"
    )


def cost(found: list[Row | None], phases: Row | None) -> str:
    there = [f for f in found if f is not None]
    parts: list[str] = []
    if there:
        rows = [
            (
                SHAPES[f["model"]],
                f"{r['seconds'] * 1e3:.1f}",
                *(f"{r['more_with'][kind] * 1e3:+.2f}" for kind in ("gathering", "beside", "other")),
                f"{r['share_with']:+.2%}",
                f"{r['share_again']:+.2%}",
                f"{r['longest_beside_with']:.2f} ({r['longest_beside_without']:.2f})",
            )
            for f in there
            for r in f["rows"]
        ]
        first = there[0]["rows"][0]
        columns = [
            "model",
            "ms a step",
            "more, gathering",
            "measuring and deciding",
            "otherwise",
            "share of a step",
            "twin without",
            "longest step beside the review / median",
        ]
        parts.append(
            f"**What telemetry costs,** `ErrorFeedback(TopK(ratio=0.01))` without and with a controller that gathers, "
            f"measures and decides every {first['every']} steps and sends the same bytes; {first['world_size']} ranks, "
            f"{there[0]['link']}, in turns step by step, and beside it a twin without: what noise alone would say. "
            f"Median differences in ms by kind of step, and their sum over a period; in brackets the longest step "
            f"without (`torchrun --nproc-per-node 2 benchmarks/adaptive.py cost --model NAME`).\n\n"
            f"{table(columns, rows)}"
        )
    if phases is not None:
        names = ("gather", "measure", "exchange", "decide", "adopt")
        rows = [
            (
                MODELS[r["model"]],
                *(f"{r[f'{name}_seconds'] * 1e3:.2f}" for name in names),
                size(r["message_bytes"]),
            )
            for r in phases["rows"]
        ]
        columns = ["model", "gathering, a step", *names[1:], "messages"]
        parts.append(
            "**Where it goes,** milliseconds of one rank on recorded gradients, one thread: gathering adds to each "
            "step of the window; measuring (all layers, so the share of a rank among W is a W-th) and deciding run "
            "beside the steps; exchanging and adopting take part of a step, the network's time apart "
            f"(`python benchmarks/adaptive.py phases`).\n\n{table(columns, rows)}"
        )
    return "\n\n".join(parts)


def allocation(found: Row | None) -> str:
    if found is None:
        return ""
    r = found["rows"][0]
    return (
        f"**Choosing** for {r['layers']} layers of {r['candidates']} settings in {r['buckets']:,} buckets takes "
        f"{r['allocate_ms']:.1f} ms within an error and {r['allocate_bytes_ms']:.1f} ms within bytes "
        f"(`python benchmarks/adaptive.py allocation`)."
    )


def auto(found: list[Row]) -> str:
    if not found:
        return ""
    rows = [
        (
            f"{SHAPES[f['model']]}, {f['link']}",
            f"`{r['picked']}`" if r["picked"] else "no hook",
            f"{r['seconds_no_hook'] * 1e3:.1f}",
            f"{r['seconds_auto'] * 1e3:.1f}",
            f"{r['ratio']:.3f}",
        )
        for f in found
        for r in f["rows"]
    ]
    return (
        f"**`Auto()`** after its pick, and DDP without a hook, step by step in turns, "
        f"{found[0]['rows'][0]['world_size']} ranks (`benchmarks/adaptive.py auto`).\n\n"
        f"{table(['model, link', 'picked', 'ms without a hook', 'ms under Auto', 'ratio'], rows)}"
    )
