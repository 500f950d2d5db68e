"""Compression that chooses itself: what it gains on recorded gradients and in training, and what it costs.

    python benchmarks/adaptive.py gains --json gains.json --plot gains.png
    python benchmarks/adaptive.py rivals --json rivals.json
    python benchmarks/adaptive.py train --task charlm --steps 300 --json train.json --plot train.png
    python benchmarks/adaptive.py allocation --json allocation.json
    python benchmarks/adaptive.py phases --json phases.json
    torchrun --nproc-per-node 2 benchmarks/adaptive.py cost --json cost.json
    torchrun --nproc-per-node 2 benchmarks/adaptive.py auto --json auto.json

`gains`: bytes of one setting for all layers against L-GreCo's choice at the same sum of errors. `rivals`: other
rules for densities, each at the scale at which it loses as much. `train`: losses over bytes among simulated workers,
beside Accordion, LEGACY's rule and a global top-k. `phases`: the seconds of a controller's period, part by part.
`cost`: steps with telemetry against steps without, in turns. `auto`: steps under `cc.Auto()` against DDP without a
hook, in turns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import record
from common import write


def main() -> None:
    options = arguments()
    if options.experiment == "gains":
        from adapting import gains, pictures

        rows, curve = gains.run(tuple(options.model), options.recorded, options.quick)
        if options.plot:
            pictures.gains(rows, curve, options.plot)
        if options.json:
            write(options.json, "adaptive gains", rows, curve=curve)
    elif options.experiment == "rivals":
        from adapting import rivals

        rows = rivals.run(tuple(options.model), options.recorded, options.quick)
        if options.json:
            write(options.json, "adaptive rivals", rows)
    elif options.experiment == "phases":
        from adapting import phases

        rows = phases.run(tuple(options.model), options.recorded, options.quick)
        if options.json:
            write(options.json, "adaptive phases", rows)
    elif options.experiment == "train":
        from adapting import pictures, training

        rows = training.run(options.task, options.steps, options.every, options.world, options.seeds)
        if options.plot:
            pictures.training(rows, options.plot, f"{options.task}, {options.world} workers, {options.seeds} seeds")
        if options.json:
            more = {"task": options.task, "steps": options.steps, "every": options.every}
            write(options.json, "adaptive training", rows, world_size=options.world, **more)
    elif options.experiment == "allocation":
        import allocation

        found = allocation.measure()
        print(found)
        if options.json:
            write(options.json, "adaptive allocation", [found])
    else:
        from adapting import steps

        steps.main(options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    experiments = parser.add_subparsers(dest="experiment", required=True)
    gains = experiments.add_parser("gains", help="ratios on recorded gradients")
    rivals = experiments.add_parser("rivals", help="ratios of other rules at equal error")
    phases = experiments.add_parser("phases", help="where a controller's time goes")
    for recorded in (gains, rivals, phases):
        recorded.add_argument("--model", nargs="+", default=["digits", "transformer", "resnet50", "gpt2"])
        recorded.add_argument("--recorded", type=Path, default=record.FOLDER, help="folder of recordings")
        recorded.add_argument("--quick", action="store_true", help="small models, for tests")
    train = experiments.add_parser("train", help="losses over bytes")
    train.add_argument("--task", default="charlm", choices=["charlm", "digits"])
    train.add_argument("--steps", type=int, default=300)
    train.add_argument("--every", type=int, default=30, help="steps between decisions")
    train.add_argument("--world", type=int, default=2, help="simulated workers")
    train.add_argument("--seeds", type=int, default=3)
    experiments.add_parser("allocation", help="the dynamic programme's time")
    cost = experiments.add_parser("cost", help="what telemetry takes of a step")
    auto = experiments.add_parser("auto", help="Auto against no hook")
    for timed in (cost, auto):
        timed.add_argument("--steps", type=int, default=400)
        timed.add_argument("--model", default="charlm", choices=["charlm", "resnet50"])
    cost.add_argument("--every", type=int, default=200, help="steps between decisions, and of a period")
    for each in (gains, rivals, phases, train, cost, auto, experiments.choices["allocation"]):
        each.add_argument("--json", help="file for the rows")
    for each in (gains, train):
        each.add_argument("--plot", help="file for the picture")
    return parser.parse_args()


if __name__ == "__main__":
    main()
