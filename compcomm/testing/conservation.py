"""Conservation: what was not applied is still there, through steps that overflow and parameters that nobody used."""

from __future__ import annotations

from collections.abc import Container
from math import prod

import torch
from torch import Tensor

from ..core.layout import Segment
from ..core.reducer import Reducer
from ..routes.choose import settle
from ..transports.simulator import Simulator
from .errors import demand
from .inputs import MODEL, model_layout
from .simulated import Named, backwards, gradients, rebuilt, roundoff, step

INF = float("inf")


def remembered(simulator: Simulator, name: str, shape: tuple[int, ...]) -> Tensor:
    """Mean residual plus the owners' residuals of one parameter, in double precision."""
    return _remembered(simulator, [Segment(name, shape, 0, prod(shape))]).view(shape)


def _remembered(simulator: Simulator, segments: list[Segment]) -> Tensor:
    """That of several, one after the other."""
    states = [store.state_dict() for store in simulator.stores]
    parts: list[Tensor] = []
    for s in segments:
        total = torch.zeros(s.numel, dtype=torch.float64)
        for state in states:
            if s.name in state.get("residual", {}):
                total += state["residual"][s.name].double() / len(states)
        parts.append(total + _owned(simulator, states, s))
    return torch.cat(parts)


def _owned(simulator: Simulator, states: list[dict[str, Named]], s: Segment) -> Tensor | float:
    """What the owners hold of a parameter, joined."""
    held = [state["server"][s.name] for state in states if s.name in state.get("server", {})]
    if not held:
        return 0.0
    return simulator.reducer.slots(s, len(held))["server"].natural(torch.cat(held)).double()


def keeps_everything(settled: Reducer, world: int, segment: Segment) -> bool:
    """Whether nothing of this parameter is lost for good: it travels exact, or what is not sent stays in a residual."""
    return settled.exact(segment) or (
        "residual" in settled.slots(segment, world) and settled.promises(segment).conserves
    )


class Ledger:
    """Sum of mean gradients less what was applied, of all parameters of which nothing is lost for good with any of the
    numbers of ranks: what is to be found in memory, within rounding."""

    def __init__(self, r: Reducer, *worlds: int) -> None:
        settled = [(settle(r, world), world) for world in worlds]
        kept = [s for s in model_layout().segments if all(keeps_everything(one, world, s) for one, world in settled)]
        self.reducer, self.segments, self.most = r, kept, max(worlds)
        self.due, self.size = (torch.zeros(sum(s.numel for s in kept), dtype=torch.float64) for _ in range(2))

    def _flat(self, named: Named) -> Tensor:
        return torch.cat([named[s.name].reshape(-1) for s in self.segments])

    def book(self, given: list[Named], means: Named | None, forgotten: Container[str] = ()) -> None:
        """A step: all ranks' gradients and what was applied (None: it was undone); who forgets it then."""
        if not self.segments:
            return
        clean = torch.stack([self._flat(g) for g in given]).double()
        clean[~clean.isfinite()] = 0.0
        self.size += clean.abs().sum(0)
        mean = clean.mean(0)
        for s, part in zip(self.segments, mean.split([s.numel for s in self.segments]), strict=True):
            if s.name in forgotten:
                part.zero_()
        self.due += mean
        if means is not None:
            self.due -= self._flat(means)

    def demand_balance(self, simulator: Simulator, when: str) -> None:
        """Memory holds what is due."""
        if not self.segments:
            return
        off = (_remembered(simulator, self.segments) - self.due).abs()
        off -= max(2e-6, 2 * self.most * roundoff(self.reducer, self.most)) * (self.size + 1)
        for s, part in zip(self.segments, off.split([s.numel for s in self.segments]), strict=True):
            what = f"{s.name}: applied + residuals miss the sum of the gradients by up to"
            demand((part <= 0).all(), self.reducer, f"{what} {float(part.max()):.3g} {when}.")


def loses_nothing_over_many_steps(r: Reducer) -> None:
    """Sum of means + mean residual + owners' residuals = sum of mean gradients, within fp32 rounding, over 12 steps."""
    for world in (1, 2, 3):
        simulator, ledger = Simulator(r, world, seed=17), Ledger(r, world)
        for t in range(12):
            given = gradients(world, t)
            ledger.book(given, step(simulator, given, rebuilt(t))[0])
        ledger.demand_balance(simulator, f"after {simulator.steps} steps ({world} ranks)")


BAD = {2: (0, "head"), 4: (1, "layer.bias"), 6: (2, "embedding"), 7: (2, "embedding")}
"""In which step which rank's gradient of which parameter overflows."""


def applies_nothing_of_a_bad_step(r: Reducer) -> None:
    """An overflow on one rank, in one bucket: every rank sees NaN there, and every bucket gives its payload back.

    What was finite in that step stays in the residual, so nothing is lost; parameters without a residual forget the
    step, as they do in plain training when the scaler skips it.
    """
    world = 3
    simulator, ledger = Simulator(r, world, seed=17), Ledger(r, world)
    exact = {s.name for s in model_layout().segments if simulator.reducer.exact(s)}
    for t in range(10):
        given, bad = gradients(world, t), t in BAD
        if t == 6:  # bad, and one parameter that nobody used in the same step
            for g in given:
                g["layer.weight"].zero_()
        if bad:
            rank, name = BAD[t]
            given[rank][name].view(-1)[3:6] = torch.tensor([INF, -INF, float("nan")], dtype=torch.float32)
        means = step(simulator, given, backwards(t))
        _demand_finite(r, simulator, f"{'bad ' if bad else ''}step {t}")
        demand(simulator.bad == bad, r, f"step {t} is bad: {bad}, and the flows say {simulator.bad}.")
        if bad:
            for rank, named in enumerate(means):
                demand(named[BAD[t][1]].isnan().any(), r, f"rank {rank} does not see that {BAD[t][1]} is NaN.")
        ledger.book(given, None if bad else means[0], exact if bad else ())
    ledger.demand_balance(simulator, f"after {simulator.steps} steps ({world} ranks)")


def _demand_finite(r: Reducer, simulator: Simulator, when: str) -> None:
    for store in simulator.stores:
        for name, entries in store.state_dict().items():
            for parameter, entry in entries.items():
                demand(entry.isfinite().all(), r, f"slot {name!r} of {parameter!r} is not finite after the {when}: "
                       f"give back in undo what the step took, or change it in keep.")  # fmt: skip


def keeps_its_estimates_together(r: Reducer) -> None:
    """Slot "mean" is the (weighted) mean of all ranks' "estimate", less what the owners keep, on every rank and after
    every step: with bad steps, parameters that nobody used, and buckets cut anew."""
    for world in (1, 2, 3):
        simulator = Simulator(r, world, seed=17)
        mine = [s for s in model_layout().segments if {"estimate", "mean"} <= set(simulator.reducer.slots(s, world))]
        for t in range(9 if mine else 0):
            given = gradients(world, t)
            if t in (0, 3, 6):
                given[t % world]["head"].view(-1)[5] = INF
            if t in (3, 4):
                for g in given:
                    g["layer.weight"].zero_()
            step(simulator, given, rebuilt(t))
            states = [store.state_dict() for store in simulator.stores]
            for s in mine:
                _demand_together(r, simulator, states, s)


def _demand_together(r: Reducer, simulator: Simulator, states: list[dict[str, Named]], s: Segment) -> None:
    world = simulator.world
    weight = simulator.reducer.slots(s, world)["estimate"].weight
    due = sum(weight(rank, world) * state["estimate"][s.name].double() for rank, state in enumerate(states))
    first = states[0]["mean"][s.name]
    for rank, state in enumerate(states):
        alike = torch.equal(state["mean"][s.name], first)
        demand(alike, r, f"slot 'mean' of {s.name} differs between ranks 0 and {rank}.")
    off = float((first.double() - due + _owned(simulator, states, s)).abs().max())
    kept = off <= 60 * max(2e-6, 2 * world * roundoff(r, world))
    demand(kept, r, f"slot 'mean' of {s.name} is {off:.3g} off the mean of the estimates ({world} ranks).")


def leaves_dead_parameters_at_zero(r: Reducer) -> None:
    """A parameter that no rank used: its mean is zero, what its residual would have sent is kept, others go on. DDP
    throws such a mean away. A parameter that only some ranks did not use is averaged as ever."""
    world = 3
    simulator, ledger = Simulator(r, world, seed=17), Ledger(r, world)
    dead = {s.name for s in model_layout().segments if "residual" in simulator.reducer.slots(s, world)}
    for t in range(8):
        given = gradients(world, t)
        unused = {n for i, (n, _) in enumerate(MODEL) if t > 2 and (t + i) % 3 == 0}
        for n in unused:
            for g in given:
                g[n].zero_()
        given[t % world]["layer.weight"].zero_()
        means = step(simulator, given, backwards(t))
        for n in unused & dead:
            demand(not means[0][n].any(), r, f"{n} has no gradient on any rank, and a mean that is not zero.")
        ledger.book(given, means[0])
    ledger.demand_balance(simulator, f"after {simulator.steps} steps ({world} ranks)")
