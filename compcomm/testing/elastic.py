"""Another number of workers: what was still to be applied is still to be applied, and the run goes on."""

from __future__ import annotations

import torch

from ..core.reducer import Reducer
from ..core.state import Merge
from ..state import merging
from ..transports.simulator import Simulator
from .conservation import Ledger
from .errors import demand, same_bits
from .inputs import model_layout
from .simulated import Named, backwards, gradients, step

WORLDS = (4, 2, 3, 1, 4)


def survives_a_change_of_workers(r: Reducer) -> None:
    """Merged over W ranks and loaded by W', memory conserves what it conserved: sum of means + mean residual + owners'
    residuals = sum of mean gradients, right after each change and three steps later. All ranks get the same merged
    slots and the same means, and hold the same REPLICATED slots."""
    ledger, before = Ledger(r, *WORLDS), None
    for world in WORLDS:
        simulator, where = Simulator(r, world, seed=17), f"with {world} workers"
        if before is not None:
            where = f"from {before.world} to {world} workers"
            _move(r, before, simulator, where)
            ledger.demand_balance(simulator, f"right after the change {where}")
            _same_copies(r, simulator, where)
        for _ in range(3):
            given = gradients(world, simulator.steps)
            means = step(simulator, given, backwards(0))
            ledger.book(given, means[0])
            _same_means(r, means, where)
        ledger.demand_balance(simulator, f"three steps after the change {where}")
        _same_copies(r, simulator, where)
        before = simulator


def _move(r: Reducer, before: Simulator, after: Simulator, where: str) -> None:
    merged = before.merged()
    for other in merged[1:]:
        demand(_equal(merged[0], other), r, f"the ranks merge their memory into different tensors ({where}).")
    after.steps = before.steps
    for store in after.stores:
        store.declare(model_layout())
        merging.load_merged(store, merged[0])
    again = after.merged()[0]
    demand(_shapes(again) >= _shapes(merged[0]), r, f"merged again, a slot is gone or of another shape ({where}).")


def _same_means(r: Reducer, means: list[Named], where: str) -> None:
    for named in means:
        for n, mean in named.items():
            demand(mean.isfinite().all(), r, f"the mean of {n} is not finite {where}.")
            demand(same_bits(mean, means[0][n]), r, f"the ranks' means of {n} differ {where}.")


def _same_copies(r: Reducer, simulator: Simulator, where: str) -> None:
    states = [store.state_dict() for store in simulator.stores]
    for s in model_layout().segments:
        for name, declared in simulator.reducer.slots(s, simulator.world).items():
            if declared.merge is Merge.REPLICATED:
                copies = [state[name][s.name] for state in states]
                same = all(torch.equal(c, copies[0]) for c in copies)
                demand(same, r, f"the ranks' copies of slot {name!r} of {s.name} differ {where}.")


def _equal(a: merging.Portable, b: merging.Portable) -> bool:
    keys = {s: list(e) for s, e in a.items()} == {s: list(e) for s, e in b.items()}
    return keys and all(torch.equal(a[s][n], b[s][n]) for s in a for n in a[s])


def _shapes(merged: merging.Portable) -> set[tuple[str, str, torch.Size]]:
    return {(s, n, t.shape) for s, e in merged.items() for n, t in e.items()}
