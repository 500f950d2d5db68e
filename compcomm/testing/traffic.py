"""What crosses the wire: the sequence of collectives and the bytes, as the dry run lists them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..core.context import Context
from ..core.drive import OutOfStepError, lockstep
from ..core.layout import Bucket, Layout
from ..core.reducer import Flow, Reduced, Reducer
from ..core.source import Source, Target
from ..core.state import State, Store
from ..routes.choose import settle
from ..transports.dry_run import cost, plan
from ..transports.simulator import Simulator, perform
from .errors import ContractError, demand
from .inputs import model_layout
from .simulated import WORLDS, backwards, gradients, pack, step, whole

Signature = tuple[str, str, int]


class Ran(NamedTuple):
    """What one rank has after ``reduce``: result, mean, the collectives that all yielded, whether it saw bad data."""

    result: Reduced
    out: Bucket
    seen: list[Signature]
    bad: bool


def reduce_together(
    reducer: Reducer,
    inputs: list[Bucket],
    at: int,
    *,
    fill: float = 0.0,
    out_scale: float = 1.0,
    accumulate: bool = False,
    add: list[Bucket] | None = None,
    decay: float = 1.0,
    add_scale: float = 1.0,
) -> list[Ran]:
    """``reducer.reduce`` on one bucket per rank, without Commit."""
    world = len(inputs)
    contexts = [Context(rank, world, at, seed=17) for rank in range(world)]
    outs = [Bucket(torch.full_like(given.flat, fill), given.layout) for given in inputs]
    flows: list[Flow] = []
    for rank, given in enumerate(inputs):
        store = Store(reducer, rank, world)
        store.declare(given.layout)
        x, given_too = Bucket(given.flat.clone(), given.layout), None if add is None else add[rank]
        source, target = Source(x, given_too, decay, add_scale), Target(outs[rank], out_scale, accumulate)
        flows.append(reducer.reduce(source, target, State(store, given.layout), contexts[rank]))
    seen: list[Signature] = []
    rounds = lockstep(flows)
    while True:
        try:
            ops = next(rounds)
        except StopIteration as end:
            ends: list[Reduced] = end.value
            return [Ran(end, out, seen, bool(c.bad)) for end, out, c in zip(ends, outs, contexts, strict=True)]
        except OutOfStepError as error:
            raise ContractError(f"{reducer!r}: {error}") from error
        seen.append(ops[0].signature)
        perform(ops)


def sends_what_the_dry_run_says(r: Reducer) -> None:
    """``cost`` gives, for every rank, the bytes that the simulator counts, or the most where messages vary in length;
    ``Exact`` is never undercut by a bug."""
    for world, cut in zip(WORLDS, (backwards, whole, backwards, whole), strict=True):
        simulator, layouts = Simulator(r, world), cut(0)
        simulator.steps = 1 << 30
        step(simulator, gradients(world, 0), layouts)
        for rank in range(world):
            due = sum(cost(r, layout, world, rank).sent for layout in layouts)
            found = simulator.sent[rank]
            fits = found <= due if settle(r, world).traits.variable else found == due
            demand(fits, r, f"rank {rank} of {world} sends {found} bytes where cost() says {due}.")
            demand(world > 1 or due == 0, r, f"sends {due} bytes to nobody.")


def _spoil(inputs: list[Bucket], layout: Layout) -> None:
    """Makes the ranks' data as unlike as can be: a rank of zeros, and one with infinities."""
    inputs[0].flat.zero_()
    inputs[-1].flat[layout.numel // 2] = float("inf")
    inputs[-1].flat[: layout.segments[0].stop] = 0.0


def keeps_to_one_sequence_of_collectives(r: Reducer) -> None:
    """What is sent follows from configuration, layout, world and step alone: data cannot change it, nor can a rank."""
    layout = model_layout()
    for world in (2, 3, 5):
        settled = settle(r, world)
        for at in (0, 1 << 20):
            due = [(p.kind, p.dtype, p.nbytes) for p in plan(settled, layout, world, 0, at)]
            for bad in (False, True):
                inputs = [pack(g, layout) for g in gradients(world, at)]
                if bad:
                    _spoil(inputs, layout)
                for rank, ran in enumerate(reduce_together(settled, inputs, at)):
                    demand(ran.seen == due, r, f"rank {rank} of {world} yields {ran.seen}; the dry run lists {due}.")
                    demand(ran.bad == bad, r, f"rank {rank} of {world} calls the step {'bad' if ran.bad else 'good'}.")
