"""Seconds of the kernels on one GPU, as shares of the bandwidth of a copy in the same run.

``python benchmarks/kernels.py --device cuda``.

A repeat resets the vectors, drives them out of the second-level cache, and measures a copy and then the call with CUDA
events, behind a pause that hides how long the host takes to launch. Every op runs on each backend that has a kernel for
it, and beside other ways to do the same (``gpu_peers.py``). Targets and bytes are in ``gpu_targets.py``.

``--device interpreter`` measures nothing: it makes every call once on the CPU, in Triton's interpreter, and compares
the results with the reference.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import gpu_peers as peers
import torch
from common import write
from gpu_targets import MOVES, OURS, SEGMENTED, Row, judge, moves
from torch import Tensor

from compcomm.ops import backend, gpu
from compcomm.plan.shapes import resnet50
from compcomm.report.metrics import timing

OPS = torch.ops.compcomm
Call = Callable[[], Any]
BLOCK = 512
ON = {"cuda": "cuda", "interpreter": "cpu"}
PAUSE = 2_000_000  # cycles, about a millisecond


class Buffers:
    """The vectors that all cases share: ``numel`` elements of one type, in one row or in ResNet-50's tensors."""

    def __init__(self, numel: int, dtype: torch.dtype, device: str) -> None:
        draw = torch.Generator(device).manual_seed(0)
        self.numel, self.dtype, self.device = numel, dtype, device

        def normal() -> Tensor:
            return torch.empty(numel, device=device).normal_(generator=draw).to(dtype)

        self.start, self.add = normal().mul_(0.1), normal()
        self.x, self.out, self.copy = self.start.clone(), torch.zeros_like(self.start), torch.empty_like(self.start)
        self.status, self.skip = (torch.zeros(n, dtype=torch.uint8, device=device) for n in (170, 169))
        self.wire = torch.zeros(4 * numel + 4096, dtype=torch.uint8, device=device)
        self.hint = torch.zeros(169, device=device)
        self.k = max(1, numel // 100)
        self.flat = torch.tensor([[0, 0, numel, 0, 0, 0x123456789ABCDEF, self.k, 0]])
        self.cool()

    def reset(self) -> None:
        """Residual, hints, mean and status as before the step that is measured, so that every call finds the same."""
        self.x.copy_(self.residual)
        self.hint.copy_(self.hinted)
        self.out.copy_(self.start)
        self.status.zero_()

    def cool(self) -> None:
        """The step is the first: no row depends on the rows before it."""
        self.residual, self.hinted = self.start, torch.zeros_like(self.hint)

    def warm(self, call: Call) -> None:
        """The step is one of many, as in training: what three steps on other gradients left is there, their residual
        (whose largest elements have been sent) and the last one's hints."""
        gradient = self.add.clone()
        for _ in range(3):
            self.add.copy_(torch.roll(self.add, 12345))
            call()
        self.add.copy_(gradient)
        self.residual, self.hinted = self.x.clone(), self.hint.clone()

    def written(self) -> list[Tensor]:
        """Copies of what a call may write."""
        return [t.clone() for t in (self.x, self.out, self.wire, self.status, self.hint)]

    def tensors(self, section: Callable[[int], int], ratio: float = 0.0) -> Tensor:
        """The table of ResNet-50's tensors, as many as fit."""
        lines: list[list[int]] = []
        at = byte = 0
        for _, shape in resnet50():
            numel = math.prod(shape)
            if at + numel <= self.numel:
                kept = math.ceil(ratio * numel)
                lines.append([at, at, numel, byte, 0, 7 * at + 1, kept, len(lines)])
                at, byte = at + numel, byte + (section(numel) if not ratio else _sparse(numel, kept))
        return torch.tensor(lines)

    def inputs(self, table: Tensor) -> tuple[Any, ...]:
        return self.x, self.add, self.wire, table, self.status, 1.0, 1.0


def _dense(bits: int, numel: int) -> int:
    return 4 * -(-numel // BLOCK) + -(-numel * bits // 32) * 4


def _sparse(numel: int, k: int) -> int:
    return 4 * -(-numel // 65536) + -(-k // 2) * 4 + 4 * k


# Each of these makes a call of the op on one row, or on ResNet-50's tensors.


def qsgd(b: Buffers, tensors: bool = False, *, stochastic: bool = False) -> Call:
    table = b.tensors(partial(_dense, 4)) if tensors else b.flat
    f, tail = OPS.qsgd_encode.default, (torch.ones(len(table)), 4, 7, False, stochastic, BLOCK, 1, 0)
    return lambda: f(*b.inputs(table), *tail)


def sign(b: Buffers, tensors: bool = False) -> Call:
    table = b.tensors(partial(_dense, 1)) if tensors else b.flat
    return lambda: OPS.sign_encode.default(*b.inputs(table), 0, BLOCK)


def topk(b: Buffers, tensors: bool = False) -> Call:
    table = b.tensors(partial(_dense, 1), 0.01) if tensors else b.flat
    hint = b.hint[: len(table)]
    return lambda: OPS.topk_encode.default(*b.inputs(table), hint)


def sampled(b: Buffers, tensors: bool = False) -> Call:
    steps = count()
    return lambda: OPS.topk_sampled_encode.default(*b.inputs(b.flat), next(steps), 0)


def forward(b: Buffers, tensors: bool = False) -> Call:
    return lambda: OPS.hadamard_forward.default(*b.inputs(b.flat), 1 << 15, 1)


def inverse(b: Buffers, tensors: bool = False) -> Call:
    z = b.start.float().view(torch.uint8).unsqueeze(0)
    return lambda: OPS.hadamard_inverse.default(z, b.flat, b.skip, b.out, 1.0, True, 1 << 15, 1)


def decoder(b: Buffers, tensors: bool, encode: Callable[[Buffers, bool], Call], bits: int, f: Any, *tail: Any) -> Call:
    """Decode and add eight messages, each of other numbers."""
    table = b.tensors(partial(_dense, bits)) if tensors else b.flat
    wires = torch.empty(8, int(table[-1, 3]) + _dense(bits, int(table[-1, 2])), dtype=torch.uint8, device=b.device)
    call = encode(b, tensors)
    for message in wires:
        call()
        message.copy_(b.wire[: wires.shape[1]])
    return lambda: f(wires, table, b.skip, b.out, 1e-3, True, *tail)


CASES: dict[str, tuple[str, Callable[[Buffers, bool], Call]]] = {
    "qsgd4_encode nearest": ("qsgd_encode", qsgd),
    "qsgd4_encode stochastic": ("qsgd_encode", partial(qsgd, stochastic=True)),
    "sign_encode": ("sign_encode", sign),
    "qsgd4_decode W=8": (
        "qsgd_decode",
        lambda b, tensors: decoder(b, tensors, qsgd, 4, OPS.qsgd_decode.default, 4, 7, BLOCK),
    ),
    "sign_decode W=8": (
        "sign_decode",
        lambda b, tensors: decoder(b, tensors, sign, 1, OPS.sign_decode.default, BLOCK),
    ),
    "topk_encode 1 %, cold": ("topk_encode", topk),
    "topk_encode 1 %, warm": ("topk_encode", topk),
    "topk_encode 1 %, sampled": ("topk_sampled_encode", sampled),
    "hadamard_forward 2^15": ("hadamard_forward", forward),
    "hadamard_inverse 2^15": ("hadamard_inverse", inverse),
    "torch.topk 1 %": ("", lambda b, tensors: lambda: None),
}
assert CASES.keys() == MOVES.keys()


def peer(op: str, kind: str, b: Buffers) -> Call | None:
    """The same job done another way; None: this one has none.

    Raises:
        ImportError: cupy is missing.
    """
    if kind == "torch" and op == "torch.topk 1 %":
        magnitudes = b.add.abs()
        return lambda: torch.topk(magnitudes, b.k, sorted=False)
    name = op.partition("_")[0] if op in ("qsgd4_encode nearest", "sign_encode", "topk_encode 1 %, cold") else ""
    tail = (b.k,) if name == "topk" else ()
    if kind == "torch.compile" and name:
        f: Any = getattr(peers, name)
        if b.device != "cpu":
            f = torch.compile(f, fullgraph=True, dynamic=False)
        return lambda: f(b.x, b.add, *tail)
    if kind == "GRACE" and hasattr(peers, f"grace_{name}"):
        f = getattr(peers, f"grace_{name}")
        return lambda: f(b.x, b.add, *tail)
    if kind == "cupy" and name == "sign":
        packbits = peers.cupy_packbits()
        return lambda: peers.onebit(b.x, b.add, packbits)
    return None


def measure(call: Call, b: Buffers, flush: Tensor, options: argparse.Namespace) -> Row:
    """Medians of calls and copies in turn; stops early when the budget in seconds is spent."""
    for _ in range(2):  # compiles; then memory is there
        b.reset()
        call()
    torch.cuda.synchronize()
    ours, copies, host, began = [], [], [], time.perf_counter()

    def timed(f: Call) -> tuple[Any, Any]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        torch.cuda._sleep(PAUSE)
        start.record()
        f()
        end.record()
        return start, end

    def observed() -> None:
        since = time.perf_counter()
        call()
        host.append(time.perf_counter() - since)

    while len(ours) < 3 or (len(ours) < options.repeats and time.perf_counter() - began < options.budget):
        b.reset()
        events = timed(lambda: b.copy.copy_(b.add)), timed(observed)
        torch.cuda.synchronize()
        for (start, end), seconds in zip(events, (copies, ours), strict=True):
            seconds.append(start.elapsed_time(end) / 1e3)
    mine, copy = timing(ours), timing(copies)
    return {
        "seconds": mine.median,
        "spread": mine.spread,
        "repeats": len(ours),
        "host_seconds": timing(host).median,
        "copy_seconds": copy.median,
    }


def bandwidth(row: Row, op: str, itemsize: int) -> None:
    """Bytes that must move, and how fast they did, by the row's seconds."""
    row["formula"] = str(moves(op))
    row["bytes"] = moves(op).bytes(itemsize) * row["numel"]
    row["gigabytes_per_second"] = row["bytes"] / row["seconds"] / 1e9
    row["copy_gigabytes_per_second"] = 2 * itemsize * row["numel"] / row["copy_seconds"] / 1e9
    row["share"] = row["gigabytes_per_second"] / row["copy_gigabytes_per_second"]


def groups(numel: int) -> list[tuple[int, torch.dtype, list[tuple[str, str, bool]]]]:
    """Vectors of equal length and type, so that they are made once: (elements, type, [(row, case, in tensors)])."""
    small = min(numel, sum(math.prod(shape) for _, shape in resnet50()))
    segmented = [(f"{op}, {how}", op, how == "ResNet-50") for op in SEGMENTED for how in ("one row", "ResNet-50")]
    every = [(op, op, False) for op in CASES]
    return [
        (numel, torch.float32, every),
        (numel, torch.bfloat16, every),
        (small, torch.float32, segmented),
    ]


def prepared(make: Callable[[], Call], b: Buffers, warm: bool) -> Call:
    """The call, and ``b`` as it shall find it."""
    b.cool()
    b.reset()
    call = make()
    if warm:
        b.warm(call)
    return call


def check(call: Callable[[], Call], b: Buffers, kind: str, warm: bool) -> None:
    """One call in Triton's interpreter and one of the reference; or, of a peer, that it can be made.

    Raises:
        AssertionError: they differ.
    """
    found: list[list[Tensor]] = []
    for used in (kind, "reference") if kind in OURS else ("reference",):
        with backend(used):
            made = prepared(call, b, warm)
            b.reset()
            b.wire.fill_(0xA5)
            made()
        found.append(b.written())
    for a, e in zip(found[0], found[-1], strict=True):
        assert torch.equal(a.view(torch.uint8), e.view(torch.uint8)), f"{kind} differs from the reference"


def run(options: argparse.Namespace) -> list[Row]:
    """All rows. What could not be measured has ``skipped``, a reason; what went wrong has ``failed``."""
    dry = options.device == "interpreter"
    device = ON[options.device]
    rows: list[Row] = []
    flush = torch.empty(0 if dry else max(1 << 28, 4 * _l2()), dtype=torch.uint8, device=device)
    for numel, dtype, cases in groups(options.numel):
        wanted = [c for c in cases if not options.ops or c[0].startswith(tuple(options.ops))]
        b = Buffers(numel, dtype, device) if wanted else None
        for name, case, tensors in wanted:
            assert b is not None
            op, make = CASES[case]
            for kind in options.backend:
                row: Row = {"op": name, "backend": kind, "dtype": str(dtype)[6:], "numel": numel}
                found = gpu.find(op, kind, device) if kind in OURS and op else None
                if isinstance(found, str):
                    row["skipped"] = found
                try:
                    made = None if "skipped" in row else _made(op, kind, name, make, tensors, b)
                    if made is None and "skipped" not in row:
                        continue
                    if made is not None and dry:
                        check(made, b, kind, "warm" in name)
                    elif made is not None:
                        with backend(kind if kind in (*OURS, "reference") else "reference"):
                            row |= measure(prepared(made, b, "warm" in name), b, flush, options)
                        bandwidth(row, name, dtype.itemsize)
                except (ImportError, torch.OutOfMemoryError) as error:
                    row["skipped"] = f"{type(error).__name__}: {error}"
                except Exception as error:  # the other rows are worth having
                    row["failed"] = f"{type(error).__name__}: {error}"
                rows.append(row)
                print(line(row), flush=True)
        del b
    return rows


def _made(
    op: str, kind: str, name: str, make: Callable[[Buffers, bool], Call], tensors: bool, b: Buffers
) -> Callable[[], Call] | None:
    """What makes the call of a row; None: there is none."""
    if kind in (*OURS, "reference"):
        return partial(make, b, tensors) if op else None
    call = peer(name, kind, b)
    return None if call is None else lambda: call


def line(row: Row) -> str:
    head = f"{row['op']:36s} {row['dtype']:8s} {row['backend']:13s}"
    if "skipped" in row or "failed" in row:
        return f"{head} {'skipped: ' + row['skipped'] if 'skipped' in row else 'FAILED: ' + row['failed']}"
    if "seconds" not in row:
        return f"{head} agrees"
    low, high = row["spread"]
    return (
        f"{head} {row['seconds'] * 1e3:9.3f} ms {low * 1e3:8.3f}..{high * 1e3:8.3f} {row['gigabytes_per_second']:7.0f} "
        f"GB/s {row['share']:6.1%} of copy, host {row['host_seconds'] * 1e6:6.0f} us"
    )


def _l2() -> int:
    return getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 1 << 26


def describe() -> dict[str, Any]:
    """The GPU, its driver, and what compiles for it."""
    import triton

    properties: Any = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "l2_bytes": _l2(),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def main(options: argparse.Namespace) -> int:
    """The exit code: 1 where a row failed, 2 where there is no GPU."""
    if options.device == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA"
        print(
            f"kernels.py --device cuda: there is no GPU here that torch can use (torch {torch.__version__}, built for "
            f"{built}). Nothing was measured. --device interpreter makes the same calls without one.",
            file=sys.stderr,
        )
        return 2
    if options.device == "interpreter" and os.environ.get("TRITON_INTERPRET") != "1":  # Triton looks when imported
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "TRITON_INTERPRET": "1"})
    rows = run(options)
    judge(rows)
    for row in rows:
        for t in row.get("targets", ()):
            verdict = "reached" if t["reached"] else "MISSED"
            print(f"{row['op']:36s} {row['dtype']:8s} {row['backend']:7s} {t['what']}: {t['found']:.3g}, asked "
                  f"{t['target']:g}: {verdict}")  # fmt: skip
    if options.json:
        more = {"gpu": describe()} if options.device == "cuda" else {}
        write(options.json, "kernels-cuda", rows, block=BLOCK, **more)
    return int(any("failed" in row for row in rows))
