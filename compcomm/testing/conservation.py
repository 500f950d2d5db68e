"""Conservation: what was not applied is still there, through steps that overflow and parameters that nobody used."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.layout import Segment
from ..core.reducer import Reducer
from ..routes.choose import settle
from ..transports.simulator import Simulator
from .errors import demand
from .inputs import MODEL, model_layout
from .simulated import Named, backwards, gradients, rebuilt, roundoff, slot, step

INF = float("inf")


def remembered(simulator: Simulator, name: str, shape: tuple[int, ...]) -> Tensor:
    """Mean residual plus the owners' residuals of one parameter, in double precision."""
    world = simulator.world
    total = torch.zeros(shape, dtype=torch.float64).view(-1)
    for rank in range(world):
        residual = slot(simulator, rank, "residual").get(name)
        if residual is not None:
            total += residual.double() / world
    shares = [slot(simulator, rank, "server").get(name) for rank in range(world)]
    held = [s for s in shares if s is not None]
    if held:
        segment = Segment(name, shape, 0, total.numel())
        total += simulator.reducer.slots(segment, len(held))["server"].natural(torch.cat(held)).double()
    return total.view(shape)


def keeps_everything(settled: Reducer, world: int, segment: Segment) -> bool:
    """Whether nothing of this parameter is lost for good: it travels exact, or what is not sent stays in a residual."""
    return settled.exact(segment) or (
        "residual" in settled.slots(segment, world) and settled.promises(segment).conserves
    )


def _conserving(r: Reducer, world: int) -> dict[str, tuple[int, ...]]:
    settled = settle(r, world)
    return {s.name: s.shape for s in model_layout().segments if keeps_everything(settled, world, s)}


def _mean(found: list[Named], name: str) -> Tensor:
    return torch.stack([g[name] for g in found]).double().mean(0)


def _demand_balance(r: Reducer, simulator: Simulator, name: str, applied: Tensor, due: Tensor, size: Tensor) -> None:
    held = remembered(simulator, name, tuple(due.shape))
    u = max(2e-6, 2 * simulator.world * roundoff(r, simulator.world))
    off = (applied + held - due).abs() - u * (size + 1)
    what = f"{name}: applied + residuals miss the sum of the gradients by up to {float(off.max()):.3g}"
    demand((off <= 0).all(), r, f"{what} after {simulator.steps} steps ({simulator.world} ranks).")


def loses_nothing_over_many_steps(r: Reducer) -> None:
    """Sum of means + mean residual + owners' residuals = sum of mean gradients, within fp32 rounding, over 12 steps."""
    for world in (1, 2, 3):
        simulator = Simulator(r, world, seed=17)
        kept = _conserving(r, world)
        applied = {n: torch.zeros(s, dtype=torch.float64) for n, s in kept.items()}
        due = {n: torch.zeros_like(t) for n, t in applied.items()}
        size = {n: torch.zeros_like(t) for n, t in applied.items()}
        for t in range(12):
            given = gradients(world, t)
            means = step(simulator, given, rebuilt(t))
            for n in kept:
                applied[n] += means[0][n]
                due[n] += _mean(given, n)
                size[n] += torch.stack([g[n].abs() for g in given]).double().sum(0)
        for n in kept:
            _demand_balance(r, simulator, n, applied[n], due[n], size[n])


def applies_nothing_of_a_bad_step(r: Reducer) -> None:
    """An overflow on one rank, in one bucket: every rank sees NaN there, and every bucket gives its payload back.

    What was finite in that step stays in the residual, so nothing is lost; parameters without a residual forget the
    step, as they do in plain training when the scaler skips it.
    """
    world = 3
    for bad_rank, bad_name in ((0, "head"), (2, "embedding"), (1, "layer.bias")):
        simulator = Simulator(r, world, seed=17)
        settled = simulator.reducer
        kept = _conserving(r, world)
        exact = {s.name for s in model_layout().segments if settled.exact(s)}
        applied = {n: torch.zeros(s, dtype=torch.float64) for n, s in kept.items()}
        due = {n: torch.zeros_like(t) for n, t in applied.items()}
        size = {n: torch.zeros_like(t) for n, t in applied.items()}
        for t in range(8):
            given = gradients(world, t)
            bad = t in (2, 5, 6)
            if bad:
                given[bad_rank][bad_name].view(-1)[3:6] = torch.tensor([INF, -INF, float("nan")], dtype=torch.float32)
            if t == 5:  # and one parameter that nobody used, in the same step
                for g in given:
                    g["layer.weight"].zero_()
            means = step(simulator, given, backwards(t))
            _demand_finite(r, simulator, f"{'bad ' if bad else ''}step {t}")
            demand(simulator.bad == bad, r, f"step {t} is bad: {bad}, and the flows say {simulator.bad}.")
            if bad:
                for rank in range(world):
                    demand(means[rank][bad_name].isnan().any(), r, f"rank {rank} does not see that {bad_name} is NaN.")
            for n in kept:
                clean = [{n: torch.where(g[n].isfinite(), g[n], 0.0)} for g in given]
                size[n] += torch.stack([g[n].abs() for g in clean]).double().sum(0)
                if not bad:
                    applied[n] += means[0][n]
                if not (bad and n in exact):
                    due[n] += _mean(clean, n)
        for n in kept:
            _demand_balance(r, simulator, n, applied[n], due[n], size[n])


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
        for t in range(9):
            given = gradients(world, t)
            if t in (0, 3, 6):
                given[t % world]["head"].view(-1)[5] = INF
            if t in (3, 4):
                for g in given:
                    g["layer.weight"].zero_()
            step(simulator, given, rebuilt(t))
            for s in model_layout().segments:
                _demand_together(r, simulator, s)


def _demand_together(r: Reducer, simulator: Simulator, s: Segment) -> None:
    world, settled = simulator.world, simulator.reducer
    if not {"estimate", "mean"} <= set(settled.slots(s, world)):
        return
    due = torch.zeros(s.numel, dtype=torch.float64)
    for rank in range(world):
        due += (
            settled.slots(s, world)["estimate"].weight(rank, world) * slot(simulator, rank, "estimate")[s.name].double()
        )
    shares = [slot(simulator, rank, "server").get(s.name) for rank in range(world)]
    held = [share for share in shares if share is not None]
    if held:
        due -= settled.slots(s, world)["server"].natural(torch.cat(held)).double()
    u = max(2e-6, 2 * world * roundoff(r, world))
    first = slot(simulator, 0, "mean")[s.name]
    for rank in range(world):
        mine = slot(simulator, rank, "mean")[s.name]
        demand(torch.equal(mine, first), r, f"slot 'mean' of {s.name} differs between ranks 0 and {rank}.")
    off = float((first.double() - due).abs().max())
    demand(off <= 60 * u, r, f"slot 'mean' of {s.name} is {off:.3g} off the mean of the estimates ({world} ranks).")


def leaves_dead_parameters_at_zero(r: Reducer) -> None:
    """A parameter that no rank used: its mean is zero, what its residual would have sent is kept, others go on. DDP
    throws such a mean away. A parameter that only some ranks did not use is averaged as ever."""
    world = 3
    simulator = Simulator(r, world, seed=17)
    settled = simulator.reducer
    kept = _conserving(r, world)
    applied = {n: torch.zeros(s, dtype=torch.float64) for n, s in kept.items()}
    due = {n: torch.zeros_like(t) for n, t in applied.items()}
    size = {n: torch.zeros_like(t) for n, t in applied.items()}
    dead = {s.name for s in model_layout().segments if "residual" in settled.slots(s, world)}
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
        for n in kept:
            applied[n] += means[0][n]
            due[n] += _mean(given, n)
            size[n] += torch.stack([g[n].abs() for g in given]).double().sum(0) + 1
    for n in kept:
        _demand_balance(r, simulator, n, applied[n], due[n], size[n])
