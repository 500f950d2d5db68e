"""``python -m compcomm plan``: which method to use, before anything is trained.

python -m compcomm plan --model resnet50 --workers 64 --bandwidth 1gbit --latency 50us --compute 0.2
torchrun --nproc-per-node 4 -m compcomm plan --measure --model net.py --json plan.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from . import units
from .methods import Method, default, method
from .models import Model, find
from .planner import plan
from .result import Plan
from .table import show


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--model", default="resnet50", help="resnet50, gpt2, ...; net.py, net.py:function, weights.pt")
    parser.add_argument("--workers", type=int, help="how many, 2 or more (with --measure: those that run)")
    parser.add_argument("--bandwidth", help=f"of every worker's link: {units.RATES}")
    parser.add_argument("--latency", help=f"per message, one way: {units.LATENCIES} (default: 50us)")
    parser.add_argument("--compute", help="forward and backward pass of one worker: 0.2, 200ms")
    parser.add_argument("--reducer", nargs="+", action="extend", help="more methods, as in Python: TopK(ratio=0.001)")
    parser.add_argument("--measure", action="store_true", help="under torchrun: measure the link and the kernels")
    parser.add_argument("--json", help="file for the plan")
    parser.add_argument("--png", help="file for the curves over workers and bandwidth (needs matplotlib)")


def main(options: argparse.Namespace) -> int:
    """Prints the plan. 0, or 2 where the options make none."""
    try:
        if not options.measure or os.environ.get("RANK", "0") == "0":
            _check_files(options)
        model = find(options.model)
        methods = (*default(), *map(method, options.reducer or ()))
        if not options.measure:
            _tell(_on_paper(options, model, methods), options, model, methods)
            return 0
        from .measured_plan import joined, measured

        with joined() as transport:
            _check_measured(options, transport.world)
            made = measured(model, methods, options.compute, transport)
            if transport.rank == 0:
                _tell(made, options, model, methods)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"compcomm plan: {error}", file=sys.stderr)
        return 2
    return 0


def _check_files(options: argparse.Namespace) -> None:
    """Refuses what could not be written before the minutes that a plan may take, not after them."""
    for name in ("json", "png"):
        given = getattr(options, name)
        if not given:
            continue
        path, why = Path(given), "it cannot be written"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fit = not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK)
        except OSError as error:
            fit, why = False, str(error)
        if not fit:
            raise ValueError(f"--{name} {given}: {why}. Give a file in a folder that can be written to.")
    if options.png:
        from ..core.optional import need

        need("matplotlib", "plan --png")


def _check_measured(options: argparse.Namespace, world: int) -> None:
    """Refuses what contradicts the ranks that run."""
    for name in ("bandwidth", "latency"):
        given = getattr(options, name)
        if given is not None:
            raise ValueError(
                f"--{name} {given}: with --measure the {world} ranks that run measure their link. Leave out --{name}, "
                f"or --measure."
            )
    if options.workers not in (None, world):
        raise ValueError(
            f"--workers {options.workers}: with --measure the plan is for the {world} ranks that run. Leave out "
            f"--workers, or start {options.workers} ranks."
        )


def _on_paper(options: argparse.Namespace, model: Model, methods: tuple[Method, ...]) -> Plan:
    for given, read in ((options.bandwidth, units.bandwidth), (options.latency, units.latency)):
        if given is not None:
            read(given)  # what is wrong is said before what is missing
    for name in ("workers", "bandwidth", "compute"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is missing. Give it, or run under torchrun with --measure.")
    return plan(
        model,
        options.workers,
        bandwidth=options.bandwidth,
        latency="50us" if options.latency is None else options.latency,
        compute=options.compute,
        methods=methods,
    )


def _tell(made: Plan, options: argparse.Namespace, model: Model, methods: tuple[Method, ...]) -> None:
    show(made)
    if options.json:
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made.as_dict(), indent=1) + "\n")
        print(f"written: {path}")
    if options.png:
        from .curves import draw

        print(f"written: {draw(made, model, methods, options.png)}")
