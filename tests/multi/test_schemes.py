"""Every feedback scheme under DDP: steps that overflow under a GradScaler, parameters that some or all ranks left out.

One run has all of it, and every step and the memory at the end are the simulator's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import compcomm as cc
from tests.schemes import CONSERVING, SCHEMES, SUMS, make

from . import models
from .given import SHAPES, Given, Named, cut, gradients, hooked, simulate
from .harness import Workers

pytestmark = pytest.mark.multi

INF, NAN = float("inf"), float("nan")
STEPS = 11
BAD = {2: "a", 5: "d", 7: "c"}
"""What overflows: on one rank, in one bucket; in the last, on all ranks, a parameter that travels exact."""
UNUSED = {0: "d", 3: "b", 5: "b", 9: "ade"}
"""What no rank uses."""


def events(rank: int, world: int, step: int) -> Named:
    """A rank's gradients in a step of this life."""
    found = gradients(rank, step)
    if step == 2 and rank == world - 1:
        found["a"][5, 7] = INF
    if step == 5 and rank == 0:
        found["d"].view(-1)[-1] = NAN
    if step == 7:
        found["c"][3] = -INF
    if step == 6:
        found = {n: torch.zeros_like(t) for n, t in found.items()}
    if step == 8 and rank == world - 1:
        found["a"].zero_()
    unused = UNUSED.get(step, "") + ("b" if step == 4 and rank == 0 else "")
    return {n: t for n, t in found.items() if n not in unused}


def lives(rank: int, world: int, reducer: str, **options: Any) -> Any:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
    module = Given()
    model, attachment = hooked(module, reducer, scaler=scaler, seed=3, find_unused_parameters=True, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found: list[dict[str, Tensor | None]] = []
    moved: list[bool] = []
    scales: list[float] = []
    norms: list[Tensor] = []
    for step in range(STEPS):
        before, scale = models.flat(model), scaler.get_scale()
        optimizer.zero_grad()
        scaler.scale(model(events(rank, world, step))).backward()
        found.append({n: None if p.grad is None else p.grad / scale for n, p in module.named_parameters()})
        scaler.unscale_(optimizer)
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0))
        scaler.step(optimizer)
        scaler.update()
        moved.append(not torch.equal(before, models.flat(model)))
        scales.append(scaler.get_scale())
    return found, moved, scales, norms, models.flat(model), models.slots(attachment), attachment.step, cut(attachment)


def compare(results: list[Any], reducer: cc.Reducer, world: int, exact: bool) -> Any:
    """The ranks with each other, and with the simulator."""
    steps = [[events(rank, world, t) for rank in range(world)] for t in range(STEPS)]
    buckets = results[0][-1]
    assert len(buckets) >= 4
    means, simulator = simulate(reducer, world, steps, buckets, seed=3)
    for rank, (found, moved, scales, norms, end, slots, count, seen) in enumerate(results):
        assert count == STEPS
        assert seen == buckets
        assert torch.equal(end, results[0][4]), "the replicas drift apart"
        assert end.isfinite().all()
        # The scale: halved after each bad step, doubled after four good ones.
        assert scales == [1024, 1024, 512, 512, 512, 256, 256, 128, 128, 128, 128]
        for t in range(STEPS):
            assert moved[t] == (t not in (*BAD, 6)), "bad steps are skipped, and where all is zero nothing moves"
            assert norms[t].isnan() == (t in BAD)
            assert torch.equal(norms[t].nan_to_num(), results[0][3][t].nan_to_num()), "clipping differs between ranks"
            for n in SHAPES:
                mean, due = found[t][n], means[t][n]
                if n in UNUSED.get(t, ""):
                    assert mean is None, f"{n} in step {t}"
                    continue
                assert mean is not None
                if t in BAD:
                    assert mean.isnan().all() or n != BAD[t], f"rank {rank} does not see that {n} is NaN in step {t}"
                    assert torch.equal(mean.isnan(), due.isnan()), f"{n} is spoiled in step {t}, in another bucket"
                elif exact:
                    assert torch.equal(mean, due), f"{n} in step {t}"
                else:
                    torch.testing.assert_close(mean, due, rtol=1e-3, atol=1e-5)
        mine = simulator.stores[rank].state_dict()
        assert mine.keys() == slots.keys()
        for slot, entries in mine.items():
            for n, t in entries.items():
                assert t.isfinite().all()
                if exact:
                    assert torch.equal(slots[slot][n], t), (slot, n)
                else:
                    torch.testing.assert_close(slots[slot][n], t, rtol=1e-3, atol=1e-4)
    return simulator


KEEPS = {"EControl": "error", "DGC, unmasked": "velocity"}
"""Where these keep what was not applied; the others of ``CONSERVING`` in "residual"."""


def conserves(results: list[Any], simulator: Any, slot: str, momentum: float) -> int:
    """Of how many parameters nothing was lost: not in a bad step, not for want of use. With ``momentum``, nothing of
    Nesterov's u + g, where u <- momentum (u + g)."""
    world, checked = simulator.world, 0
    stores = [store.state_dict() for store in simulator.stores]
    for s in cc.Layout.of(SHAPES.items()).segments:
        n = s.name
        if n not in stores[0][slot]:
            continue
        applied, due = (torch.zeros(SHAPES[n], dtype=torch.float64) for _ in range(2))
        u = torch.zeros(world, *SHAPES[n], dtype=torch.float64)
        for t in range(STEPS):
            given = [events(rank, world, t).get(n, torch.zeros(SHAPES[n])) for rank in range(world)]
            g = torch.stack(given).nan_to_num(0.0, 0.0, 0.0)
            if g.any():
                u = momentum * (u + g)
                due += (u + g).mean(0)
            mean = results[0][0][t][n]
            if t not in BAD and mean is not None:
                applied += mean
        held = torch.stack([store[slot][n] for store in stores]).double().mean(0)
        if "server" in stores[0]:
            joined = torch.cat([store["server"][n] for store in stores])
            held += simulator.reducer.slots(s, simulator.world)["server"].natural(joined).double()
        off = float((applied + held.view(SHAPES[n]) - due).abs().max())
        assert off < 1e-4, f"{n}: {off}"
        checked += 1
    return checked


@pytest.mark.turns(3)
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_life_with_everything_in_it(request: Any, scheme: str, world: int) -> None:
    workers: Workers = request.getfixturevalue("two" if world == 2 else "three")
    results = workers.run(lives, reducer=SCHEMES[scheme])
    simulator = compare(results, make(scheme), world, exact=world == 2 or scheme not in SUMS)
    if scheme in CONSERVING or scheme in KEEPS:
        momentum = make(scheme).momentum if "DGC" in scheme else 0.0
        assert conserves(results, simulator, KEEPS.get(scheme, "residual"), momentum) >= 3
    if scheme.startswith(("EF21", "EControl")):
        for s in cc.Layout.of(SHAPES.items()).segments:
            if not simulator.reducer.exact(s):
                together(simulator, s)


def together(simulator: Any, s: cc.Segment) -> None:
    """m = mean of h, less what the owners keep."""
    world = simulator.world
    held = [store.state_dict() for store in simulator.stores]
    due = torch.stack([h["estimate"][s.name] for h in held]).double().mean(0)
    if "server" in held[0]:
        joined = torch.cat([h["server"][s.name] for h in held])
        due -= simulator.reducer.slots(s, simulator.world)["server"].natural(joined).double()
    assert all(float((h["mean"][s.name].double() - due).abs().max()) < 2e-5 * world for h in held)
    assert due.abs().max() > 0.1
