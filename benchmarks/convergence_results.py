"""The results page's part on convergence, from the files of ``benchmarks/convergence`` that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cells import size, table, times


def section(folder: Path) -> str:
    """All of it; empty without files."""
    makers = {
        "charlm": charlm,
        "digits": digits,
        "three-workers": three_workers,
        "logistic": logistic,
        "weights": weights,
        "econtrol": econtrol,
        "lyapunov": lyapunov,
    }
    paths = {name: folder / f"convergence-{name}.json" for name in makers}
    return "\n\n".join(
        make(json.loads(paths[name].read_text())) for name, make in makers.items() if paths[name].is_file()
    )


def charlm(found: dict[str, Any]) -> str:
    rows = [
        (
            f"{r['method']}: `{r['reducer']}`",
            f"{r['loss']:.4f}",
            f"{r['gap']:+.3f}",
            size(r["sent"]),
            times(r["ratio"]),
            times(r["coded_ratio"]),
            times(r["card_ratio"]),
        )
        for r in found["rows"]
    ]
    first = found["rows"][0]
    columns = [
        "method",
        "validation loss",
        "to the first",
        "bytes per step",
        "fewer",
        "in what is coded",
        "on the card",
    ]
    return (
        f"**A character transformer at {found['density']:.1%} density,** no biases, {first['world_size']} workers, "
        f"{first['steps']} steps of each at its best rate of a small grid; bytes after warm-up against fp32 "
        f"(`launch/netlab --hosts 2 --rate 1gbit -- python benchmarks/convergence/charlm.py --data FILE`).\n\n"
        f"{table(columns, rows)}\n\n![loss against steps](results/convergence-charlm.png)"
    )


def digits(found: dict[str, Any]) -> str:
    rows = [
        (
            f"{r['method']}: `{r['reducer']}`",
            f"{r['accuracy']:.3f} ± {r['accuracy_std']:.3f}",
            f"{r['train_loss']:.1e}",
            times(r["ratio"]),
        )
        for r in found["rows"]
    ]
    first = found["rows"][0]
    return (
        f"**Digits,** an MLP, {found['workers']} workers, {first['steps']} steps, {first['seeds']} seeds; warm-up, "
        f"indices and headers counted (`python benchmarks/convergence/digits.py`).\n\n"
        f"{table(['method', 'test accuracy', 'training loss', 'fewer bytes'], rows)}"
    )


def three_workers(found: dict[str, Any]) -> str:
    marks = list(found["rows"][0]["f"])
    rows = [(r["method"], f"{r['multiple']} gamma", *(f"{r['f'][t]:.3g}" for t in marks)) for r in found["rows"]]
    return (
        "**Three workers, Top-1.** f(x) from 1.75; without feedback x grows by exactly 1 + 11 rate/6 a step "
        "(`python benchmarks/convergence/three_workers.py`).\n\n"
        f"{table(['method', 'step size', *(f't = {t}' for t in marks)], rows)}"
    )


def logistic(found: dict[str, Any]) -> str:
    marks = ["100", "300", "600", "1000", "1500", "3000"]
    rows = [
        (
            f"{r['data']}, {r['method']}",
            f"{r['multiple']} gamma",
            str(r["bits_per_step"]),
            *(f"{r['marks'][t]:.1e}" if t in r["marks"] else "" for t in marks),
        )
        for r in found["rows"]
        if r["multiple"] > 1
    ]
    return (
        f"**EF21 and error feedback (EF14), nonconvex logistic regression,** {found['clients']} clients, Top-1, LIBSVM "
        f"data: |grad f|^2 after t steps; bits per client and step, indices included "
        f"(`python benchmarks/convergence/logistic.py --data DIR`).\n\n"
        f"{table(['data, method', 'step size', 'bits', *(f't = {t}' for t in marks)], rows)}"
    )


def weights(found: dict[str, Any]) -> str:
    names = list(found["rows"][0]["steps"])
    rows = [
        (f"{r['ratio']:g}", f"{r['rate_ratio']:.2f}", *(f"{r['steps'][n]:,}" for n in names), f"{r['fewer']:.2f}")
        for r in found["rows"]
    ]
    return (
        f"**EF21 under unlike smoothness.** Steps until |grad f|^2 has fallen by 1e8 with the step size of the "
        f"quadratic or the arithmetic mean of the L_i, and with `smoothness_weights`, {found['world_size']} workers "
        f"(`python benchmarks/convergence/weights.py`).\n\n"
        f"{table(['stiffest : others', 'larger step', *names, 'fewer steps'], rows)}"
    )


def econtrol(found: dict[str, Any]) -> str:
    methods = list(dict.fromkeys(r["method"] for r in found["rows"]))
    settings: dict[str, dict[str, float | None]] = {}
    for r in found["rows"]:
        settings.setdefault(f"{r['zeta']:g}, {r['sigma']:g}, {r['rate']:g}", {})[r["method"]] = r["value"]
    rows = [
        (name, *("diverges" if values[m] is None else f"{values[m]:.3g}" for m in methods))
        for name, values in settings.items()
    ]
    return (
        "**EControl, least squares.** f(x) - f* at the end, by unlikeness, noise and step size "
        "(`python benchmarks/convergence/econtrol.py`).\n\n"
        f"{table(['zeta, sigma, rate', *methods], rows)}"
    )


def lyapunov(found: dict[str, Any]) -> str:
    rows = found["rows"]
    slack = max(max(r["largest"], r["largest_mean"]) / r["rho"] for r in rows)
    return (
        f"**The tight rate of feedback** holds in every step for {sum(r['holds'] for r in rows)} of {len(rows)} pairs "
        f"of a contractive compressor and a scheme (EF14, EF21); the largest step comes to {slack:.4f} of the bound "
        f"(`python benchmarks/convergence/lyapunov.py`)."
    )
