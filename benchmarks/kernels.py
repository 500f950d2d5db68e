"""Seconds of every kernel on one core, as multiples of memcpy of the same vector in the same run.

    python benchmarks/kernels.py                                  # 25.6 million floats: a ResNet-50's gradient
    python benchmarks/kernels.py --ops qsgd4 sign --isa avx512 avx2 --backend native --json kernels.json
    python benchmarks/kernels.py --device cuda                    # on one GPU, 256 Mi floats: see gpu_kernels.py

Each measurement follows one of memcpy, so that a busy machine slows both. Encoders read x and a gradient, and leave the
residual in x. "reference" is the same op from torch operators (three repeats: it is slow, and steady); ``torch.topk``
stands beside top-k. Unless --isa says otherwise, the 4-bit, 1-bit and top-k ops run with every vector instruction set
that the processor has, and the others with the best one.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from common import write
from torch import Tensor

import compcomm as cc
from compcomm.core.rows import Inputs
from compcomm.ops import backend, native
from compcomm.plan.shapes import resnet50
from compcomm.report.metrics import timing

OPS = torch.ops.compcomm
Call = Callable[[], Any]
CASES: dict[str, Callable[[Buffers], Call]] = {}
BLOCK = 512
EVERY_ISA = ("qsgd4", "sign", "topk")
ON_GPUS = ("triton", "cuda", "reference", "torch.compile", "GRACE", "cupy", "torch")
DEVICES = {"cpu": (25_600_000, ("native", "reference")), "cuda": (1 << 28, ON_GPUS), "interpreter": (4096, ON_GPUS)}
"""By device: how many elements unless told otherwise, and what is measured."""


class Buffers:
    """The vectors that all cases share: one row of ``numel`` elements, up to eight messages."""

    def __init__(self, numel: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.numel = numel
        self.start, self.add = torch.randn(numel, generator=draw) * 0.1, torch.randn(numel, generator=draw)
        self.x = self.start.clone()
        self.out, self.copy = torch.zeros(numel), torch.zeros(numel)
        self.status, self.skip = torch.zeros(2, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
        self.gain = torch.ones(1)
        self.wire = torch.zeros(4 * numel + 64, dtype=torch.uint8)

    def reset(self) -> None:
        """Residual and mean as before the first step, so that no row depends on the rows before it."""
        self.x.copy_(self.start)
        self.out.zero_()

    def table(self, kept: int = 0) -> Tensor:
        return torch.tensor([[0, 0, self.numel, 0, 0, 0x123456789ABCDEF, kept, 0]])

    def resnet50(self, ratio: float) -> Tensor:
        """The table of a top-k message of ResNet-50's parameters, as many as fit."""
        lines, at, byte = [], 0, 0
        for _, shape in resnet50():
            numel = math.prod(shape)
            kept = math.ceil(ratio * numel)
            if at + numel <= self.numel:
                lines.append([at, at, numel, byte, 0, 0, kept, 0])
                at, byte = at + numel, byte + 4 * -(-numel // 65536) + -(-kept // 2) * 4 + 4 * kept
        return torch.tensor(lines)

    def encoder(self, op: str, *tail: Any, kept: int = 0, table: Tensor | None = None) -> Call:
        f, rows = getattr(OPS, f"{op}_encode").default, self.table(kept) if table is None else table
        return lambda: f(self.x, self.add, self.wire, rows, self.status, 1.0, 1.0, *tail)

    def decoder(
        self, op: str, messages: int, nbytes: int, encode: Call, *tail: Any, kept: int = 0, accumulate: bool = True
    ) -> Call:
        """Decode (and add, if accumulate) as many messages, each of other numbers."""
        f, table = getattr(OPS, f"{op}_decode").default, self.table(kept)
        wires = torch.empty(messages, nbytes, dtype=torch.uint8)
        for message in wires:
            encode()
            message.copy_(self.wire[:nbytes])
        return lambda: f(wires, table, self.skip, self.out, 1e-3, accumulate, *tail)


def case(name: str) -> Callable[[Callable[[Buffers], Call]], Callable[[Buffers], Call]]:
    def keep(make: Callable[[Buffers], Call]) -> Callable[[Buffers], Call]:
        CASES[name] = make
        return make

    return keep


def dense_cases() -> None:
    def qsgd(b: Buffers, bits: int, norm2: bool = False, stochastic: bool = False) -> Call:
        return b.encoder("qsgd", b.gain, bits, 2 ** (bits - 1) - 1, norm2, stochastic, BLOCK, 1, 0)

    def qsgd_decoder(b: Buffers, bits: int, messages: int) -> Call:
        nbytes = 4 * -(-b.numel // BLOCK) + -(-b.numel * bits // 32) * 4
        return b.decoder("qsgd", messages, nbytes, qsgd(b, bits), bits, 2 ** (bits - 1) - 1, BLOCK)

    def sign_decoder(b: Buffers, messages: int) -> Call:
        nbytes = 4 * -(-b.numel // BLOCK) + -(-b.numel // 32) * 4
        return b.decoder("sign", messages, nbytes, b.encoder("sign", 0, BLOCK), BLOCK)

    for bits in (4, 8, 2, 3):
        case(f"qsgd{bits}_encode nearest")(lambda b, bits=bits: qsgd(b, bits))
        case(f"qsgd{bits}_encode stochastic")(lambda b, bits=bits: qsgd(b, bits, stochastic=True))
        for messages in (1, 2, 4, 8) if bits == 4 else (1,):
            case(f"qsgd{bits}_decode W={messages}")(lambda b, bits=bits, w=messages: qsgd_decoder(b, bits, w))
    case("qsgd4_encode nearest, L2 norm")(lambda b: qsgd(b, 4, norm2=True))
    case("sign_encode")(lambda b: b.encoder("sign", 0, BLOCK))
    for messages in (1, 4, 8):
        case(f"sign_decode W={messages}")(lambda b, w=messages: sign_decoder(b, w))
    for half, name in ((False, "bfloat16"), (True, "float16")):
        case(f"{name}_encode")(lambda b, half=half: b.encoder("cast", half))
        case(f"{name}_decode W=1")(
            lambda b, half=half: b.decoder("cast", 1, -(-b.numel // 2) * 4, b.encoder("cast", half), half)
        )
    case("dense_encode")(lambda b: b.encoder("dense"))
    case("dense_decode W=1")(lambda b: b.decoder("dense", 1, 4 * b.numel, b.encoder("dense")))


def sparse_cases() -> None:
    def topk(b: Buffers, ratio: float, warm: bool, table: Tensor | None = None) -> Call:
        hint = torch.zeros(1 if table is None else len(table))
        call = b.encoder("topk", hint, kept=max(1, round(ratio * b.numel)), table=table)

        def cold() -> None:
            hint.zero_()
            call()

        return call if warm else cold

    def topk_decoder(b: Buffers, ratio: float, messages: int, accumulate: bool = True) -> Call:
        kept = max(1, round(ratio * b.numel))
        nbytes = 4 * -(-b.numel // 65536) + -(-kept // 2) * 4 + 4 * kept
        return b.decoder("topk", messages, nbytes, topk(b, ratio, warm=True), kept=kept, accumulate=accumulate)

    def randk(b: Buffers) -> Call:
        return b.encoder("randk", b.gain, 1, kept=max(1, b.numel // 100))

    def randk_decoder(b: Buffers, messages: int) -> Call:
        kept = max(1, b.numel // 100)
        return b.decoder("randk", messages, 4 * kept, randk(b), 1, kept=kept)

    def torch_topk(b: Buffers) -> Call:
        kept = max(1, round(0.01 * b.numel))
        return lambda: torch.topk(b.add.abs(), kept, sorted=False)

    case("topk_encode 1 %, cold")(lambda b: topk(b, 0.01, warm=False))
    case("topk_encode 1 %, warm")(lambda b: topk(b, 0.01, warm=True))
    case("topk_encode 0.1 %, warm")(lambda b: topk(b, 0.001, warm=True))
    case("topk_encode 1 %, ResNet-50 cold")(lambda b: topk(b, 0.01, False, b.resnet50(0.01)))
    case("topk_encode 1 %, ResNet-50 warm")(lambda b: topk(b, 0.01, True, b.resnet50(0.01)))

    def sampled(b: Buffers) -> Call:
        steps, call, table = count(), OPS.topk_sampled_encode.default, b.table(b.numel // 100)
        return lambda: call(b.x, b.add, b.wire, table, b.status, 1.0, 1.0, next(steps), 0)

    def threshold(b: Buffers, fit: str) -> Call:
        c = cc.Threshold(0.01, fit=fit)
        inputs = Inputs(b.x, b.add, b.wire, b.table(c.kept(b.numel)), b.status, 1.0, 1.0)
        return lambda: c.encode_rows(inputs, b.gain, cc.Rng(), {}, lambda *_: cc.Segment("w", (b.numel,), 0, b.numel))

    case("topk_encode 1 %, sampled")(sampled)
    for fit in ("exponential", "pareto", "gamma"):
        case(f"threshold encode 1 %, {fit}")(lambda b, fit=fit: threshold(b, fit))
    case("topk_decode 1 % W=2, no sum")(lambda b: topk_decoder(b, 0.01, 2, accumulate=False))
    case("topk_decode 1 % W=1")(lambda b: topk_decoder(b, 0.01, 1))
    case("topk_decode 1 % W=8")(lambda b: topk_decoder(b, 0.01, 8))
    case("randk_encode 1 %")(randk)
    case("randk_decode 1 % W=2")(lambda b: randk_decoder(b, 2))
    case("torch.topk 1 %")(torch_topk)


def lowrank_cases() -> None:
    def lowrank(b: Buffers, rank: int, call: Callable[..., Call]) -> Call:
        """``call(table, p, q, lines)``: ResNet-50's matrices that PowerSGD compresses, with their factors."""
        power, layout = cc.PowerSGD(rank=rank), cc.Layout.of(resnet50())
        table: list[list[int]] = []
        lines: list[list[int]] = []
        p = q = 0
        for s in layout.segments:
            sizes = power.sizes(s)
            if sizes is not None and s.stop <= b.numel:
                n, m, r = sizes
                table.append([s.start, s.start, n, m, r, p, q, 0])
                lines.append([p, -1, n, 0, 0, 0, r, 0])
                p, q = p + n * r, q + m * r
        draw = torch.Generator().manual_seed(0)
        factors = torch.randn(p, generator=draw), torch.randn(q, generator=draw) * 1e-6
        tables = [torch.tensor(rows, dtype=torch.int64).view(-1, 8) for rows in (table, lines)]
        return call(tables[0], *factors, tables[1])

    def product(b: Buffers, rank: int, name: str, gradient: Tensor | None) -> Call:
        f = getattr(OPS, f"lowrank_{name}").default
        return lowrank(b, rank, lambda t, p, q, _: lambda: f(b.x, gradient, p, q, t, b.status, 1.0))

    def reconstruct(b: Buffers, rank: int) -> Call:
        f = OPS.lowrank_reconstruct.default
        return lowrank(b, rank, lambda t, p, q, _: lambda: f(b.x, b.out, p, q, p, q, t, b.skip, 1.0, False, 1.0))

    for rank in (1, 4):
        name = f"rank {rank}, ResNet-50"
        case(f"lowrank_project {name}")(lambda b, r=rank: product(b, r, "project", b.add))
        case(f"lowrank_backproject {name}")(lambda b, r=rank: product(b, r, "backproject", None))
        case(f"lowrank_reconstruct {name}")(lambda b, r=rank: reconstruct(b, r))
    case("lowrank_orthonormal rank 4, ResNet-50")(
        lambda b: lowrank(b, 4, lambda _, p, __, lines: lambda: OPS.lowrank_orthonormal.default(p, lines))
    )


@contextmanager
def implementation(kind: str, isa: str) -> Iterator[None]:
    before = native.isa()
    with backend(kind):
        if kind == "native":
            native.set_isa(isa)
        try:
            yield
        finally:
            if kind == "native":
                native.set_isa(before)


def measure(call: Call, b: Buffers, repeats: int, budget: float) -> dict[str, Any]:
    """Medians of interleaved calls and copies; stops early when the budget in seconds is spent."""
    nbytes = 4 * b.numel
    b.reset()
    call()
    ours, copies, began = [], [], time.perf_counter()
    while len(ours) < 3 or (len(ours) < repeats and time.perf_counter() - began < budget):
        start = time.perf_counter()
        ctypes.memmove(b.copy.data_ptr(), b.add.data_ptr(), nbytes)
        middle = time.perf_counter()
        call()
        ours.append(time.perf_counter() - middle)
        copies.append(middle - start)
    mine, memcpy = timing(ours), timing(copies)
    return {
        "seconds": mine.median,
        "spread": mine.spread,
        "repeats": len(ours),
        "memcpy_seconds": memcpy.median,
        "memcpy_ratio": mine.median / memcpy.median,
    }


def runs(name: str, options: argparse.Namespace) -> list[tuple[str, str]]:
    """Pairs of a backend and its instruction set in which a case is measured."""
    if name.startswith("torch."):
        return [("torch", "torch")]
    best = [isa for isa in reversed(native.isas()) if isa != "baseline"] or list(native.isas())
    chosen: list[str] = options.isa or (best if name.startswith(EVERY_ISA) else best[:1])
    found = [("native", isa) for isa in chosen if native.available()] if "native" in options.backend else []
    return found + ([("reference", "torch")] if "reference" in options.backend else [])


def main() -> None:
    options = arguments()
    if options.device != "cpu":
        import gpu_kernels

        sys.exit(gpu_kernels.main(options))
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    b = Buffers(options.numel)
    print(f"{'op':38s} {'backend':10s} {'isa':9s} {'ms':>9s} {'quartiles':>17s} {'memcpy ms':>10s} {'ratio':>7s}")
    for name, make in CASES.items():
        if options.ops and not name.startswith(tuple(options.ops)):
            continue
        b.reset()
        call = make(b)
        for kind, isa in runs(name, options):
            repeats = min(options.repeats, 3) if kind == "reference" else options.repeats
            with implementation("reference" if kind == "torch" else kind, isa):
                row = {"op": name, "backend": kind, "isa": isa, "numel": options.numel}
                row |= measure(call, b, repeats, options.budget)
            rows.append(row)
            low, high = row["spread"]
            print(
                f"{name:38s} {kind:10s} {isa:9s} {row['seconds'] * 1e3:9.2f} {low * 1e3:8.2f}..{high * 1e3:7.2f} "
                f"{row['memcpy_seconds'] * 1e3:10.2f} {row['memcpy_ratio']:7.2f}",
                flush=True,
            )
    if options.json:
        write(options.json, "kernels", rows, block=BLOCK)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    more: dict[str, Any] = {"nargs": "+", "action": "extend"}
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="interpreter: calls alone, nothing measured")
    parser.add_argument("--numel", type=int, help="elements; default: 25.6 million, on a GPU 2^28")
    parser.add_argument("--ops", **more, help="only cases whose name begins so, such as qsgd4 or sign_decode")
    parser.add_argument("--isa", **more, choices=native.isas(), help="instruction sets, for all cases")
    parser.add_argument("--backend", **more, choices=sorted({b for found in DEVICES.values() for b in found[1]}))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds per row, three repeats at least")
    parser.add_argument("--json", help="write the rows to this file")
    options = parser.parse_args()
    numel, backends = DEVICES[options.device]
    options.numel, options.backend = options.numel or numel, options.backend or backends
    if options.device != "cpu" and options.numel % BLOCK:
        parser.error(f"--numel {options.numel}: on a GPU a multiple of {BLOCK}, for what it is compared with")
    return options


dense_cases()
sparse_cases()
lowrank_cases()

if __name__ == "__main__":
    main()
