"""Another number of workers: what was still to be applied is still to be applied, and the run goes on."""

from __future__ import annotations

import torch

from ..core.reducer import Reducer
from ..core.state import Merge
from ..routes.choose import settle
from ..state import merging
from ..transports.simulator import Simulator
from .conservation import keeps_everything, remembered
from .errors import demand, same_bits
from .inputs import model_layout
from .simulated import Named, backwards, gradients, roundoff, slot, step

CHANGES = ((4, 2), (2, 3), (3, 1), (1, 4))


def survives_a_change_of_workers(r: Reducer) -> None:
    """Merged over W ranks and loaded by W', memory conserves what it conserved: sum of means + mean residual + owners'
    residuals = sum of mean gradients, right after the change and four steps later. All ranks get the same merged
    slots and the same means, and hold the same REPLICATED slots."""
    for old, new in CHANGES:
        first, second = Simulator(r, old, seed=17), Simulator(r, new, seed=17)
        where = f"from {old} to {new} workers"
        kept = {
            s.name
            for s in model_layout().segments
            if all(keeps_everything(settle(r, world), world, s) for world in (old, new))
        }
        gone, size = _Total(), _Total()
        for t in range(5):
            _advance(first, t, kept, gone, size)
        merged = first.merged()
        for other in merged[1:]:
            demand(_equal(merged[0], other), r, f"the ranks merge their memory into different tensors ({where}).")
        second.steps = first.steps
        for store in second.stores:
            store.declare(model_layout())
            merging.load_merged(store, merged[0])
        _balanced(r, second, gone, size, max(old, new), f"right after the change {where}")
        _same_copies(r, second, where)
        again = second.merged()[0]
        demand(_shapes(again) >= _shapes(merged[0]), r, f"merged again, a slot is gone or of another shape ({where}).")
        for t in range(5, 9):
            means = _advance(second, t, kept, gone, size)
            for named in means:
                for n, mean in named.items():
                    demand(mean.isfinite().all(), r, f"the mean of {n} is not finite {where}.")
                    demand(same_bits(mean, means[0][n]), r, f"the ranks' means of {n} differ {where}.")
        _balanced(r, second, gone, size, max(old, new), f"four steps after the change {where}")
        _same_copies(r, second, where)


class _Total(dict[str, torch.Tensor]):
    def take(self, name: str, tensor: torch.Tensor) -> None:
        self[name] = self[name] + tensor if name in self else tensor.clone()


def _advance(simulator: Simulator, at: int, kept: set[str], gone: _Total, size: _Total) -> list[Named]:
    """One step; ``gone``: sum of mean gradients less what was applied."""
    given = gradients(simulator.world, at)
    means = step(simulator, given, backwards(at))
    for n in kept:
        all_ranks = torch.stack([g[n] for g in given]).double()
        gone.take(n, all_ranks.mean(0) - means[0][n])
        size.take(n, all_ranks.abs().sum(0))
    return means


def _balanced(r: Reducer, simulator: Simulator, gone: _Total, size: _Total, most: int, when: str) -> None:
    u = max(2e-6, 2 * most * roundoff(r, most))
    for n, due in gone.items():
        off = (remembered(simulator, n, tuple(due.shape)) - due).abs() - u * (size[n] + 1)
        demand((off <= 0).all(), r, f"{n}: what is remembered misses what is due by {float(off.max()):.3g} {when}.")


def _same_copies(r: Reducer, simulator: Simulator, where: str) -> None:
    layout = model_layout()
    for s in layout.segments:
        for name, declared in simulator.reducer.slots(s, simulator.world).items():
            if declared.merge is Merge.REPLICATED:
                copies = [slot(simulator, rank, name)[s.name] for rank in range(simulator.world)]
                same = all(torch.equal(c, copies[0]) for c in copies)
                demand(same, r, f"the ranks' copies of slot {name!r} of {s.name} differ {where}.")


def _equal(a: merging.Portable, b: merging.Portable) -> bool:
    keys = {s: list(e) for s, e in a.items()} == {s: list(e) for s, e in b.items()}
    return keys and all(torch.equal(a[s][n], b[s][n]) for s in a for n in a[s])


def _shapes(merged: merging.Portable) -> set[tuple[str, str, torch.Size]]:
    return {(s, n, t.shape) for s, e in merged.items() for n, t in e.items()}
