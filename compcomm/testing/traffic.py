"""What crosses the wire: the sequence of collectives and the bytes, as the dry run lists them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..core.collectives import Collective
from ..core.context import Context
from ..core.layout import Bucket, Layout
from ..core.reducer import Flow, Reduced, Reducer
from ..core.source import Source, Target
from ..core.state import State, Store
from ..routes.choose import settle
from ..transports.dry_run import cost, plan
from ..transports.simulator import Simulator, perform
from .errors import ContractError, demand
from .inputs import model_layout
from .simulated import WORLDS, backwards, gradients, pack, step

Signature = tuple[str, str, int]


class Ran(NamedTuple):
    """What one rank has after ``reduce``: result, mean, the collectives it yielded, whether it saw bad data."""

    result: Reduced
    out: Bucket
    seen: list[Signature]
    bad: bool


def lockstep(
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
    outs: list[Bucket] = []
    contexts: list[Context] = []
    flows: list[Flow] = []
    for rank, given in enumerate(inputs):
        x = Bucket(given.flat.clone(), given.layout)
        out = Bucket(torch.full_like(x.flat, fill), x.layout)
        store = Store(reducer, rank, world)
        store.declare(x.layout)
        ctx = Context(rank, world, at, seed=17)
        contexts.append(ctx)
        state = State(store, x.layout)
        given_too = None if add is None else add[rank]
        source, target = Source(x, given_too, decay, add_scale), Target(out, out_scale, accumulate)
        flows.append(reducer.reduce(source, target, state, ctx))
        outs.append(out)
    seen: list[list[Signature]] = [[] for _ in range(world)]
    done: list[Reduced] = []
    while True:
        pending: list[Collective] = []
        for rank, flow in enumerate(flows):
            try:
                pending.append(flow.send(False) if seen[rank] else next(flow))
            except StopIteration as end:
                done.append(end.value)
                continue
            seen[rank].append(pending[-1].signature)
        if done:
            if pending or len(done) != world:
                raise ContractError(f"{reducer!r}: some ranks are done while others yield {seen}.")
            bad = [bool(ctx.bad) for ctx in contexts]
            return [Ran(*found) for found in zip(done, outs, seen, bad, strict=True)]
        if len({p.signature for p in pending}) != 1:
            raise ContractError(f"{reducer!r}: the ranks yield different collectives: {seen}.")
        perform(pending)


def sends_what_the_dry_run_says(r: Reducer) -> None:
    """``cost`` gives, for every rank, the bytes that the simulator counts, or the most where messages vary in length;
    ``Exact`` is never undercut by a bug."""
    for world in WORLDS:
        for layouts in ((model_layout(),), backwards(0)):
            simulator = Simulator(r, world)
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
                for rank, ran in enumerate(lockstep(settled, inputs, at)):
                    demand(ran.seen == due, r, f"rank {rank} of {world} yields {ran.seen}; the dry run lists {due}.")
                    demand(ran.bad == bad, r, f"rank {rank} of {world} calls the step {'bad' if ran.bad else 'good'}.")
