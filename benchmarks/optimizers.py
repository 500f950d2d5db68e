"""Optimizers that send compressed momentum, beside Adam and LAMB: losses, seconds over slow links, own arithmetic.

    launch/netlab --hosts 4 --rate 1gbit -- python benchmarks/optimizers.py convergence --task charlm --json charlm.json
    launch/netlab --hosts 4 --rate 1gbit -- python benchmarks/optimizers.py convergence --task digits --plot digits.png
    launch/netlab --hosts 2 --rate 100mbit -- python benchmarks/optimizers.py throughput --model gpt2 --repeats 3
    python benchmarks/optimizers.py arithmetic --model resnet50 gpt2
    python benchmarks/optimizers.py model
    python benchmarks/optimizers.py plot --results benchmarks/results --plot throughput.png

`convergence` trains the tasks of benchmarks/tasks with every method and several seeds, both tasks under Adam; equal
seeds are equal models and batches. Bytes are those of the network card, phase by phase, against those of Adam with
PyTorch's fp16 hook. `OneBitAdam` and `ZeroOneAdam` correct their bias: their warm-up is then AdamW's step, and what is
compared is compression alone. Without it (the published code) the variance of so short a warm-up is too small, and
every later step too large. LAMB has no correction, and neither has its yardstick, an `OneBitLamb` that never freezes.
Gradients of warm-ups travel as bf16, those of Adam and LAMB as fp32.

The compressor codes everything (`dense_below=0`), as the published code does. By default 1-D parameters travel exact in
fp32. They are 0.85 % of the transformer, 0.27 bits per element: whatever the block, a dry run for four ranks then gives
no more than 12.4 times fewer bytes than fp16 (13.6 to 14.1 for the digits). With all of it coded, blocks of 1024 give
15.2 to 15.3 times, times H in the last phase of 0/1 Adam, and larger blocks little more. What the card counts has
headers on top, which weigh most where messages are small: the digits' are of 30 kB. "L2 scale" is the scale of the
published code, which keeps the length of the momentum where the default keeps its error small.

`throughput` times a step of a real DDP model of known shapes: forward, a wait in place of compute (it takes no core),
backward, `optimizer.step()`. The whole wait comes before the first bucket is ready, so nothing overlaps with it; what
the yardstick would gain if all of it did stands beside ("hidden"). `arithmetic` has no process group. `model` measures
nothing. `plot` draws the throughput of all files in a folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from momentum import arithmetic, convergence, extrapolation, pictures, throughput
from momentum.methods import COMPRESSOR, SETTINGS


def main() -> None:
    options = arguments()
    options.main(options)


def plot(options: argparse.Namespace) -> None:
    found = pictures.read(options.results)
    if not found:
        raise SystemExit(f"--results {options.results}: there is no optimizers-throughput-*.json.")
    pictures.bars(found, options.plot)
    print(f"written: {options.plot}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)

    part = parts.add_parser("convergence", help="losses and bytes of whole runs")
    part.set_defaults(main=convergence.main)
    part.add_argument("--task", choices=sorted(SETTINGS), default="charlm")
    part.add_argument("--steps", type=int, default=320, help="of a run (default: 320)")
    part.add_argument("--seeds", type=int, default=3, help="runs of each method (default: 3)")
    part.add_argument("--lr", type=float, help="Adam's learning rate (default: the task's)")
    part.add_argument("--lamb-lr", type=float, help="LAMB's (default: the task's)")
    part.add_argument("--compressor", default=COMPRESSOR, help=f"of momentum, as in Python (default: {COMPRESSOR})")
    part.add_argument("--local-steps", type=int, default=4, help="0/1 Adam's longest interval, H (default: 4)")
    part.add_argument("--method", nargs="+", help="only these, by their names in the table")
    part.add_argument("--onto", type=Path, help="the JSON of a run of the same kind, whose rows come first")
    part.add_argument("--json", type=Path, help="file for the rows")
    part.add_argument("--plot", type=Path, help="PNG file for the curves")

    part = parts.add_parser("throughput", help="seconds per step over a link")
    part.set_defaults(main=throughput.main)
    part.add_argument("--model", default="resnet50", help="resnet50, gpt2, or a .py or .pt file")
    part.add_argument("--contestant", nargs="+", help="only these, by their names in the table")
    part.add_argument("--wait", type=float, default=0.1, help="seconds in place of compute (default: 0.1)")
    part.add_argument("--local-steps", type=int, default=16, help="0/1 Adam's interval (default: 16)")
    part.add_argument("--settle", type=int, default=2, help="dense steps that are not measured (default: 2)")
    part.add_argument("--repeats", type=int, default=9, help="measured steps, or intervals (default: 9)")
    part.add_argument("--seconds", type=float, default=20, help="but stop after so long and two (default: 20)")
    part.add_argument("--json", type=Path, help="file for the rows")

    part = parts.add_parser("arithmetic", help="an optimizer's own arithmetic, on one core")
    part.set_defaults(main=arithmetic.main)
    part.add_argument("--model", nargs="+", default=["resnet50", "gpt2"], help="as for throughput")
    part.add_argument("--repeats", type=int, default=21, help="pairs of each call and Adam's (default: 21)")
    part.add_argument("--json", type=Path, help="file for the rows")

    part = parts.add_parser("model", help="what a cost model says of BERT-Large on 64 GPUs")
    part.set_defaults(main=extrapolation.main)
    part.add_argument("--json", type=Path, help="file for the rows")

    part = parts.add_parser("plot", help="the throughput of all files in a folder")
    part.set_defaults(main=plot)
    part.add_argument("--results", type=Path, required=True)
    part.add_argument("--plot", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
