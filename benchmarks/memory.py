"""What state takes in memory, and what merging it for another number of workers takes beside it.

    torchrun --standalone --nproc-per-node 4 benchmarks/memory.py --json memory.json

A transformer's shapes with 100 M parameters, on real Gloo processes. Peaks are the process's own resident memory
(VmHWM of /proc, Linux only), reset before each call; "copies" counts the running state and the result together.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from pathlib import Path
from typing import Any

import torch
from common import write
from ranks import link, ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import compcomm as cc

DEFAULT = (
    "ErrorFeedback(TopK(ratio=0.01))",
    "ErrorFeedback(TopK(ratio=0.01), dtype=int8)",
    "ErrorFeedback(QSGD(bits=4, rounding='nearest'))",
    "ErrorFeedback(SparseAllReduce(TopK(ratio=0.01)))",
)


class Shapes(nn.Module):
    """Parameters of a decoder with ``layers`` layers of ``width``, and nothing that computes."""

    def __init__(self, width: int, layers: int, words: int) -> None:
        super().__init__()
        shapes = [
            (words, width),
            *[(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers,
        ]
        self.weights = nn.ParameterList(torch.zeros(shape) for shape in shapes)
        self.norms = nn.ParameterList(torch.zeros(width) for _ in range(2 * layers + 1))


def resident(field: str) -> int:
    """Bytes of this process, by /proc's name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def tensors(state: dict[str, dict[str, torch.Tensor]]) -> int:
    """Bytes of all tensors of a state dict's slots."""
    return sum(t.numel() * t.element_size() for entries in state.values() for t in entries.values())


def main() -> None:
    options = arguments()
    with ranks() as here:
        rows: list[dict[str, Any]] = []
        for name in options.reducer or DEFAULT:
            model = DistributedDataParallel(Shapes(options.width, options.layers, options.words))
            attachment = cc.attach(model, cc.parse(name))
            numel = sum(p.numel() for p in model.parameters())
            held = attachment.report().state_bytes
            slots = next(iter(attachment.state_dict().values()))["slots"]
            exact = {slot: tensors({slot: entries}) for slot, entries in slots.items()}
            del slots
            ctypes.CDLL(None).malloc_trim(0)  # what lies free would be used again, and hide what is needed
            Path("/proc/self/clear_refs").write_text("5")
            before, start = resident("VmRSS"), time.perf_counter()
            state = attachment.portable_state_dict()
            seconds, grown = time.perf_counter() - start, resident("VmHWM") - before
            merged = tensors(state["slots"])
            attachment.load_portable_state_dict(state)
            row = {
                "reducer": name,
                "world_size": here.world,
                "parameters": numel,
                "state_bytes": held,
                "slot_bytes": exact,
                "bytes_per_parameter": held / numel,
                "merged_bytes": merged,
                "peak_bytes": here.slowest([float(grown)])[0],
                "seconds": here.slowest([seconds])[0],
            }
            row["copies"] = (held + row["peak_bytes"]) / held if held else 0.0
            rows.append(row)
            if here.first:
                print(
                    f"{name:50} state {held / 1e6:7.1f} MB ({row['bytes_per_parameter']:.3f} bytes per parameter), "
                    f"merged {merged / 1e6:7.1f} MB, beside it at most {row['peak_bytes'] / 1e6:7.1f} MB: "
                    f"{row['copies']:.2f} copies, {row['seconds']:.1f} s",
                    flush=True,
                )
            attachment.detach()
            del model, attachment, state
        if here.first and options.json:
            write(options.json, "memory", rows, link=link())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--reducer", nargs="+", action="extend", help="a few error feedbacks where left out")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--words", type=int, default=33_000)
    parser.add_argument("--json", help="file for the rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
