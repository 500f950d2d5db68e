"""``python -m compcomm plan``: which method to use, before anything is trained.

python -m compcomm plan --model resnet50 --workers 64 --bandwidth 1gbit --latency 50us --compute 0.2
python -m compcomm plan ... --host nodes --ranks-per-node 8 --inside 200gbit
python -m compcomm plan ... --host fsdp2 --weights "QSGD(bits=8, rounding='nearest')"
torchrun --nproc-per-node 4 -m compcomm plan --measure --model net.py --json plan.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from ..core.compressor import Compressor
from ..core.description import parse
from ..hosts.weights import check_weights
from . import units
from .hosts import DDP, Host, Nodes
from .link import Link
from .methods import Method, method
from .models import Model, find
from .planner import check_workers, plan
from .result import Plan
from .sharded_hosts import HSDP, FullyShard
from .table import show

HOSTS = ("ddp", "nodes", "fsdp2", "hsdp")
_TWO_LEVELS = ("nodes", "hsdp")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--model", default="resnet50", help="resnet50, gpt2, ...; net.py, net.py:function, weights.pt")
    parser.add_argument("--workers", type=int, help="how many, 2 or more (with --measure: those that run)")
    parser.add_argument("--bandwidth", help=f"of every worker's link: {units.RATES}")
    parser.add_argument("--latency", help=f"per message, one way: {units.LATENCIES} (default: 50us)")
    parser.add_argument("--compute", help="forward and backward pass of one worker: 0.2, 200ms")
    parser.add_argument("--host", choices=HOSTS, default="ddp", help="what averages (default: ddp)")
    parser.add_argument("--weights", help="with fsdp2: what codes the weights, as in Python")
    parser.add_argument(
        "--ranks-per-node",
        type=int,
        help="with nodes or hsdp: how many; the bandwidth is then a node's (with --measure: as it is)",
    )
    parser.add_argument("--inside", help="with nodes or hsdp: the bandwidth among the ranks of one (default: 100gbit)")
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
        more = tuple(map(method, options.reducer or ()))
        weights = _check_host(options)
        if not options.measure:
            _tell(_on_paper(options, model, more, weights), options, model, more)
            return 0
        from .measured_plan import joined, measured, ranks_of

        with joined(nodes=options.host in _TWO_LEVELS) as transport:
            workers = ranks_of(transport)
            _check_measured(options, workers)
            made = measured(model, more, options.compute, transport, options.host, weights)
            if os.environ.get("RANK", "0") == "0":
                _tell(made, options, model, more)
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
    for name in ("bandwidth", "latency", "inside", "ranks_per_node"):
        given = getattr(options, name)
        flag = name.replace("_", "-")
        if given is not None:
            raise ValueError(
                f"--{flag} {given}: with --measure the {world} ranks that run measure their link. Leave out --{flag}, "
                f"or --measure."
            )
    if options.workers not in (None, world):
        raise ValueError(
            f"--workers {options.workers}: with --measure the plan is for the {world} ranks that run. Leave out "
            f"--workers, or start {options.workers} ranks."
        )


def _check_host(options: argparse.Namespace) -> Compressor | None:
    """Refuses what is of another host; what codes the weights."""
    for name, hosts in (("weights", ("fsdp2",)), ("ranks_per_node", _TWO_LEVELS), ("inside", _TWO_LEVELS)):
        given, flag = getattr(options, name), name.replace("_", "-")
        if given is not None and options.host not in hosts:
            raise ValueError(f"--{flag} {given}: that is for --host {' or '.join(hosts)}. Add it, or leave it out.")
    if options.host in _TWO_LEVELS and not options.measure and options.ranks_per_node is None:
        raise ValueError(f"--host {options.host}: give --ranks-per-node, or run under torchrun with --measure.")
    return None if options.weights is None else check_weights(parse(options.weights))


def _on_paper(options: argparse.Namespace, model: Model, more: tuple[Method, ...], weights: Compressor | None) -> Plan:
    rates = (options.bandwidth, units.bandwidth), (options.latency, units.latency), (options.inside, units.bandwidth)
    for given, read in rates:
        if given is not None:
            read(given)  # what is wrong is said before what is missing
    for name in ("workers", "bandwidth", "compute"):
        if getattr(options, name) is None:
            raise ValueError(f"--{name} is missing. Give it, or run under torchrun with --measure.")
    check_workers(options.workers)
    host: Host = DDP()
    if options.host in _TWO_LEVELS:
        inside = Link.of(options.inside or "100gbit", "5us")
        host = (
            Nodes.of(options.ranks_per_node, inside)
            if options.host == "nodes"
            else HSDP(options.ranks_per_node, inside)
        )
    elif options.host == "fsdp2":
        host = FullyShard.of(weights, options.workers)
    return plan(
        model,
        options.workers,
        bandwidth=options.bandwidth,
        latency="50us" if options.latency is None else options.latency,
        compute=options.compute,
        methods=(*host.methods(), *more),
        host=host,
    )


def _tell(made: Plan, options: argparse.Namespace, model: Model, more: tuple[Method, ...]) -> None:
    show(made)
    if options.json:
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made.as_dict(), indent=1) + "\n")
        print(f"written: {path}")
    if options.png:
        from .curves import draw

        print(f"written: {draw(made, model, (*made.host.methods(), *more), options.png)}")
