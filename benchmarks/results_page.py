"""Writes benchmarks/RESULTS.md from the JSON in benchmarks/results: nothing in it is typed by hand.

python benchmarks/results_page.py            # rewrites RESULTS.md
python benchmarks/results_page.py --check    # exit code 1 when RESULTS.md says something else than the results
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import convergence_results
import sharded_results
from adapting import planned
from adapting import results as adapting
from cells import size, table, times
from gpu_targets import FILE as GPU
from gpu_targets import section as on_gpu
from momentum import results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "benchmarks" / "RESULTS.md"


def page() -> str:
    """The whole page: a heading for each group of experiments whose files are there."""
    groups = {
        "Training": [quickstart()],
        "Set-up": [set_up()],
        "One gradient over a link": [exchange(p) for p in sorted(RESULTS.glob("exchange-*.json"))],
        "Compressors": [compressors(), volume()],
        "Convergence": [convergence_results.section(RESULTS)],
        "Steps that are thrown away": [thrown_away()],
        "Optimizers": [optimizers()],
        "Sharded training and two levels": [sharded_results.section(RESULTS)],
        "The planner": [planned.section(RESULTS)],
        "Compression that chooses itself": [adaptive()],
        "Merging memory": [memory()],
        "Kernels": [kernels()],
        "Kernels on a GPU": [on_gpu(RESULTS)],
        "The hook itself": [overhead(), calls(), before_after()],
    }
    parts = ["# Results", intro()]
    for title, found in groups.items():
        there = [part.removeprefix(f"**{title}.** ") for part in found if part]
        parts += [f"## {title}", *there] if there else []
    return "\n\n".join(parts) + "\n"


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def intro() -> str:
    every = (json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json")) if p.name != GPU)
    found = [f for f in every if "hardware" in f]  # a plan is predicted
    machines = dict.fromkeys(f"{f['hardware']['cpu']}, {f['hardware']['isa']}" for f in found)
    where, what = found[0]["hardware"], found[0]["versions"]
    return (
        f"Measured on machines with {where['cores']} shared cores ({'; '.join(machines)}: each file says which), one "
        f"thread per worker, torch {what['torch']}, Python {what['python']}; medians. Bytes are what the network card "
        f"counts per rank, indices and headers included. How it was measured, and how to measure it again, is in the "
        f"[protocol](README.md). This page is written by `benchmarks/results_page.py` from `benchmarks/results`. "
        + ("Nothing" if not (RESULTS / GPU).is_file() else "But for the kernels nothing")
        + " has been measured on a GPU or over NCCL yet."
    )


def quickstart() -> str:
    found = load("quickstart.json")
    rows = [
        (
            f"`{r['reducer']}`",
            f"{r['loss']:.4f}",
            str(r["steps"]),
            size(r["bytes_per_step"]),
            f"{r['seconds_per_step']:.3f}",
            "-" if r["seconds_to_target"] is None else f"{r['seconds_to_target']:.1f}",
            times(r["speedup"]),
            r.get("bound") or "-",
        )
        for r in found["rows"]
    ]
    columns = [
        "reducer",
        "validation loss",
        "steps",
        "bytes per step",
        "s per step",
        "s to stay at the loss of the first",
        "sooner",
        "steps bound by",
    ]
    command = f"bash launch/quickstart.sh --seconds {found['rows'][0]['seconds']:.0f}"
    return (
        f"**Training.** The quickstart: a character transformer on {found['data']}, {found['link']}, equal wall time "
        f"for each (`{command}`).\n\n{table(columns, rows)}\n\n"
        "![loss against seconds and bytes](results/quickstart.png)"
    )


def set_up() -> str:
    if not (RESULTS / "set-up.json").is_file():
        return ""
    found = load("set-up.json")
    rows = [(r["what"], f"{r['seconds']:.0f}") for r in found["rows"]]
    where = f"{found['hardware']['cores']} cores, compiling for {found['hardware']['isa']}"
    return (
        f"**Set-up.** From a fresh clone on {where} "
        f"(`python benchmarks/set_up.py --tests`).\n\n{table(['what', 'seconds'], rows)}"
    )


def exchange(path: Path) -> str:
    found = json.loads(path.read_text())
    rows = [
        (
            f"`{r['reducer']}`" + (", cold" if r["cold"] else ""),
            f"{r['seconds']:.4g}",
            size(r["bytes_sent"]),
            f"{r['relative_error']:.2g}",
            times(r["speedup"]),
        )
        for r in found["rows"]
    ]
    rate = found["lab"]["rate"]
    command = f"launch/netlab --hosts {found['lab']['hosts']} --rate {rate} -- python benchmarks/exchange.py"
    return (
        f"**One gradient of {found['model']}** ({found['numel']:,} elements, DDP's buckets, no backward pass to hide "
        f"behind), {found['link']} (`{command}`). The error is of one step, before feedback makes it good; "
        f"what DGC gives is a velocity and no mean gradient.\n\n"
        f"{table(['reducer', 'seconds', 'bytes sent', 'relative error', 'against Exact()'], rows)}"
    )


def compressors() -> str:
    """Per family its representative: bytes, error of one step, speed."""
    if not (RESULTS / "compressors.json").is_file():
        return ""
    found = load("compressors.json")
    errors = {(r["compressor"], r["data"]): r for r in found["rows"]}
    rows: list[tuple[str, ...]] = []
    for r in found["speed"]:
        on = [errors.get((r.get("compressor"), data), {}) for data in ("gaussian", "resnet50", "embedding")]
        if "compressor" in r:
            rows.append(
                (
                    f"`{r['compressor']}`" if any(on) else f"{r['family']}, {r['compressor']}",
                    f"{on[0]['bits_per_element']:.3g}" if on[0] else "-",
                    *(f"{o['relative_error']:.2g}" if "relative_error" in o else "-" for o in on),
                    *(f"{r[c]:.2f}" if c in r else "-" for c in ("encode_memcpy_ratio", "decode_memcpy_ratio")),
                )
            )
    columns = ["method", "bits per element", "error, Gaussian", "ResNet-50", "embedding", "encode", "decode"]
    return (
        "**Compressors.** One step of each family, without feedback: |x - C(x)|²/|x|² on Gaussian numbers and recorded "
        "gradients, and the time for 25.6 M floats on one core in multiples of `memcpy` (encode adds the gradient and "
        "leaves the error). More settings, data and what was not measured are in `benchmarks/results/compressors.json` "
        "(`python benchmarks/compressors.py`).\n\n"
        f"{table(columns, rows)}\n\n![error against bytes](results/compressors.png)"
    )


def volume() -> str:
    """What sparse averages send, in multiples of k, and what share of the best energy they select."""
    found = load("compressors.json")["volume"] if (RESULTS / "compressors.json").is_file() else []
    if not found:
        return ""
    worlds = sorted({r["world_size"] for r in found})
    cells = {(r["reducer"], r["world_size"]): f"{r['elements']:.2f} ({r['energy']:.2f})" for r in found}
    rows = [(f"`{name}`", *(cells[name, w] for w in worlds)) for name in dict.fromkeys(r["reducer"] for r in found)]
    return (
        "**Sparse averages.** Elements (four bytes, indices and headers counted) that a worker sends per step, in "
        "multiples of the k that it keeps, for a transformer's gradients in the simulator; in brackets the energy of "
        "what was selected, against the k largest elements of the exact mean.\n\n"
        f"{table(['workers', *map(str, worlds)], rows)}"
    )


SHOWN = ("qsgd4_encode", "qsgd4_decode W=1", "sign_encode", "sign_decode W=1", "bfloat16_encode", "topk_", "torch.topk")


def kernels() -> str:
    found = load("kernels.json")
    numel = found["rows"][0]["numel"]
    rows = [
        (f"`{r['op']}`", r["backend"], r["isa"], f"{r['seconds'] * 1e3:.2f}", f"{r['memcpy_ratio']:.2f}")
        for r in found["rows"]
        if r["op"].startswith(SHOWN)
    ]
    return (
        f"**Kernels.** {numel / 1e6:.1f} M floats on one core, against `memcpy` of the same vector in the same run "
        f"(`python benchmarks/kernels.py`). Encoding adds the gradient to the residual and leaves the error in one "
        f'pass. "reference" is the truth in torch operators, written for equal bits and not for speed. More in '
        f"`benchmarks/results/kernels.json`.\n\n"
        f"{table(['op', 'backend', 'instructions', 'ms', 'times memcpy'], rows)}"
    )


def overhead() -> str:
    found = load("overhead.json")
    rows = [(f"`{r['reducer']}`", f"{r['seconds'] * 1e3:.1f}", f"{r['ratio']:.2f}") for r in found["rows"]]
    return (
        "**The hook itself.** DDP's backward pass over ResNet-50's shapes on loopback, `None` being DDP without a hook "
        "(`torchrun --nproc-per-node 2 benchmarks/overhead.py`). "
        "On loopback there is little to win: measure on your own link.\n\n"
        f"{table(['reducer', 'ms', 'against no hook'], rows)}"
    )


def calls() -> str:
    found = load("calls.json")
    counts = ("calls_per_bucket", "tensors_per_bucket")
    rows = [
        (f"`{r['reducer']}`", *(f"{version[c]:.0f}" for c in counts for version in (r["before"], r)))
        for r in found["rows"]
        if r["before"]
    ]
    columns = ["reducer", "calls before", "after", "tensors before", "after"]
    return (
        "**Python calls.** What a bucket costs a rank in calls of Python functions of ours and in tensors that torch "
        "allocates beyond those of DDP without a hook, before the contracts became small and after "
        f"(`python benchmarks/calls.py`).\n\n{table(columns, rows)}"
    )


def before_after() -> str:
    """Whether the package became slower when its contracts became small."""
    if not (RESULTS / "before-after.json").is_file():
        return ""
    found = load("before-after.json")
    code = found["machine_code"]
    rows = [
        (r["benchmark"], f"`{r['row']}`", f"{r['before']:.4g}", f"{r['after']:.4g}", f"{r['ratio']:.3f}", spread(r))
        for r in found["rows"]
        if r["benchmark"] != "kernels"
    ]
    worst = [r["ratio"] for r in found["rows"] if r["benchmark"] == "kernels"]
    columns = ["benchmark", "row", "seconds before", "after", "after/before", "quartiles"]
    return (
        f"**Two versions in turns.** Commit {found['before'][:9]} and {found['after'][:9]}, each benchmark once with "
        f"either per round, {max(r['rounds'] for r in found['rows'])} rounds: the median of the rounds' ratios "
        f"(`python benchmarks/before_after.py --before FOLDER`). {code['same']} of {code['functions']} C++ functions "
        f"are the same machine code in both; the others choose the instruction set when the library is loaded. So what "
        f"kernels differ by is the machine's noise: ratios from {min(worst):.2f} to {max(worst):.2f}.\n\n"
        f"{table(columns, rows)}"
    )


def spread(row: dict[str, Any]) -> str:
    return " to ".join(f"{s:.3f}" for s in row["spread"])


def optimizers() -> str:
    """What `benchmarks/optimizers.py` has measured."""
    return results.section(RESULTS)


def adaptive() -> str:
    """What `benchmarks/adaptive.py` has measured."""
    return adapting.section(RESULTS)


def memory() -> str:
    found = load("memory.json")
    rows = [
        (
            f"`{r['reducer']}`",
            size(r["state_bytes"]),
            f"{r['bytes_per_parameter']:.3g}",
            f"{r['copies']:.3g}",
            f"{r['seconds']:.1f}",
        )
        for r in found["rows"]
    ]
    first = found["rows"][0]
    columns = ["reducer", "state per worker", "bytes per parameter", "copies at the peak", "seconds"]
    return (
        f"**Merging memory.** `portable_state_dict()` of {first['parameters'] / 1e6:.0f} M parameters among "
        f"{first['world_size']} workers: copies of the state in memory at the peak, the running one included "
        f"(`torchrun --nproc-per-node 4 benchmarks/memory.py`).\n\n{table(columns, rows)}"
    )


def thrown_away() -> str:
    """What the memory of each scheme still holds of a batch that the script did not want."""
    found = load("thrown-away.json")
    rows = [(f"`{r['reducer']}`", f"{100 * r['skipped']:.0f} %", f"{r['clipped']:.1f}") for r in found["rows"]]
    columns = ["reducer", "skipped: comes later", "clipped: steps in its direction"]
    return (
        f"What happens without a word after one batch whose gradient is {found['factor']:.0f} times the others': top-k "
        f"and rank 2 of a 64 x 96 matrix, {found['world_size']} workers (`python benchmarks/thrown_away.py`). Skipped: "
        f"what the next 200 steps bring of the gradient that was thrown away. Clipped to norm 1 by `clip_grad_norm_`, "
        f"as every step: how many steps' lengths go in that direction.\n\n{table(columns, rows)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, compare")
    made = page()
    if not parser.parse_args().check:
        PAGE.write_text(made)
    elif not PAGE.is_file() or PAGE.read_text() != made:
        sys.exit("benchmarks/RESULTS.md does not say what benchmarks/results holds: python benchmarks/results_page.py")


if __name__ == "__main__":
    main()
