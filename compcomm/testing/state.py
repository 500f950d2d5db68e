"""State: declared before the first step, exact in a checkpoint, and indifferent to how buckets are cut."""

from __future__ import annotations

import torch

from ..core.layout import Segment
from ..core.reducer import Reducer
from ..core.state import Merge, Store
from ..engine.before import Before
from ..routes.choose import settle
from ..transports.simulator import Simulator
from .errors import demand, same_bits
from .inputs import model_layout
from .simulated import Cut, Named, backwards, gradients, rebuilt, step, whole


def declares_its_slots(r: Reducer) -> None:
    """Every slot is there after ``declare``, of the declared size (state in all to the byte) and dtype, under the same
    names on every rank, and no step adds another; segments called exact have none called "residual"."""
    layout = model_layout()
    for world in (1, 3):
        settled = settle(r, world)
        keys: list[dict[str, list[str]]] = []
        for rank in range(world):
            store = Store(settled, rank, world)
            store.declare(layout)
            state = store.state_dict()
            keys.append({slot: list(entries) for slot, entries in state.items()})
            declared_bytes = 0
            for s in layout.segments:
                declared = settled.slots(s, world)
                demand(not settled.exact(s) or "residual" not in declared, r, f"{s.name} is exact, with a residual.")
                undone = settled.traits.stateful or all(slot.merge is Merge.DROP for slot in declared.values())
                demand(undone, r, f"{s.name} has memory, and stateful is False: a bad step would not be undone.")
                for name, slot in declared.items():
                    found = state.get(name, {}).get(s.name)
                    demand(found is not None, r, f"slot {name!r} of {s.name} is declared and not made.")
                    assert found is not None
                    held = s.share(rank, world, slot.alignment) if slot.merge is Merge.SHARDED else s
                    due = slot.size(held.numel)
                    declared_bytes += due * slot.dtype.itemsize
                    fits = found.numel() == due and found.dtype == slot.dtype
                    demand(fits, r, f"slot {name!r} of {s.name} has {found.numel()} elements of {found.dtype}.")
                    demand((found == slot.fill).all(), r, f"slot {name!r} of {s.name} does not begin at {slot.fill}.")
            held_bytes = store.nbytes()
            demand(held_bytes == declared_bytes, r, f"{held_bytes} bytes of state, and {declared_bytes} declared.")
        demand(all(k == keys[0] for k in keys), r, f"the ranks hold different slots: {keys}.")
        simulator = Simulator(r, world)
        step(simulator, gradients(world, 0), backwards(0))
        after = {slot: list(entries) for slot, entries in simulator.stores[0].state_dict().items()}
        demand(after == keys[0], r, f"a step makes slots that were not declared: {after}, not {keys[0]}.")


def _go(simulator: Simulator, steps: range, cut: Cut) -> list[Named]:
    return [step(simulator, gradients(simulator.world, t), cut(t))[0] for t in steps]


def _equal(a: list[Named], b: list[Named]) -> bool:
    return all(same_bits(x[n], y[n]) for x, y in zip(a, b, strict=True) for n in x)


def _same_state(a: Simulator, b: Simulator) -> bool:
    for one, two in ((x.state_dict(), y.state_dict()) for x, y in zip(a.stores, b.stores, strict=True)):
        if one.keys() != two.keys() or not all(torch.equal(t, two[s][n]) for s in one for n, t in one[s].items()):
            return False
    return True


def resumes_bit_for_bit(r: Reducer) -> None:
    """``state_dict`` of every rank, loaded into new stores at any step, continues as if nothing had happened: the same
    means and, in the end, the same state."""
    for world in (1, 3):
        first = resumed = Simulator(r, world, seed=17)
        for at, steps in ((0, 1), (1, 2), (3, 3)):
            if at:
                saved = [store.state_dict() for store in resumed.stores]
                resumed = Simulator(r, world, seed=17)
                resumed.steps = at
                for store, state in zip(resumed.stores, saved, strict=True):
                    for layout in backwards(0):
                        store.declare(layout)
                    store.load_state_dict(state)
            due = _go(first, range(at, at + steps), backwards)
            same = not at or _equal(due, _go(resumed, range(at, at + steps), backwards))
            demand(same, r, f"a checkpoint of step {at} continues differently ({world} ranks).")
            demand(_same_state(first, resumed), r, f"state differs after resuming at step {at}.")


def can_take_a_step_back(r: Reducer) -> None:
    """With its slots as they were, and the step's number, a step has never been: the first one, one whose buckets are
    cut anew, and one after which a controller decides. Memory is in the slots alone."""
    world = 2
    plain, other = Simulator(r, world, seed=17), Simulator(r, world, seed=17)
    means = [step(plain, gradients(world, t), rebuilt(t))[0] for t in range(5)]
    for t in range(5):
        kept = [Before(whole=True) for _ in other.stores]
        for before, store in zip(kept, other.stores, strict=True):
            before.take(store)
        if t in (0, 1, 3):
            step(other, gradients(world, 50 + t), backwards(0))
            for before in kept:
                before.give_back()
            other.steps -= 1
        again = step(other, gradients(world, t), rebuilt(t))[0]
        demand(_equal([again], [means[t]]), r, f"step {t} gives another mean after one that was taken back.")
    demand(_same_state(plain, other), r, "state differs after steps that were taken back.")


def can_change_its_buckets_at_any_step(r: Reducer) -> None:
    """State moves with its parameters: buckets cut anew in mid-run change no mean and lose no residual."""
    world = 2
    a, b = Simulator(r, world, seed=17), Simulator(r, world, seed=17)
    one = _go(a, range(5), whole)
    two = [*_go(b, range(2), whole), *_go(b, range(2, 4), backwards), *_go(b, range(4, 5), whole)]
    demand(_equal(one, two), r, "cutting the buckets anew changes the means.")
    first, second = (s.stores[1].state_dict() for s in (a, b))
    for name in first:
        drop = all(self_slot(a.reducer, world, name, s) is Merge.DROP for s in model_layout().segments)
        equal = all(torch.equal(first[name][n], second[name][n]) for n in first[name])
        demand(drop or equal, r, f"slot {name!r} does not follow its parameters into new buckets.")


def self_slot(r: Reducer, world: int, name: str, s: Segment) -> Merge:
    """How the slot of that name merges, DROP where the segment has none."""
    slot = r.slots(s, world).get(name)
    return Merge.DROP if slot is None else slot.merge
