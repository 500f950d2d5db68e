"""Gradient descent over a simulated cluster, several runs side by side.

Run j is parameter j of one bucket: compressors treat every parameter by itself, so a step of the simulator serves all
runs, which differ in their step sizes (and, if the caller wishes, in their losses).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import sqrt

import torch
from torch import Tensor

import compcomm as cc

Gradients = Callable[[Tensor], Tensor]
"""x [runs, d] to the workers' gradients [workers, runs, d]."""


class Lanes:
    """x [runs, d] in float64, stepped by ``reducer`` among ``world`` simulated workers."""

    def __init__(self, reducer: cc.Reducer | cc.Compressor, world: int, start: Tensor, rates: Sequence[float]) -> None:
        self.simulator = cc.Simulator(reducer, world)
        self.x = start.double().expand(len(rates), -1).clone()
        self.rates = torch.tensor(rates, dtype=torch.float64).view(-1, 1)
        self.names = [f"run {i}" for i in range(len(rates))]
        self._lay_out()

    def _lay_out(self) -> None:
        self.layout = cc.Layout.of((name, (1, self.x.shape[1])) for name in self.names)

    def step(self, gradients: Tensor, present: Sequence[int] | None = None) -> Tensor:
        """x <- x - rate * mean, and the mean."""
        buckets = [[cc.Bucket(g.reshape(-1), self.layout)] for g in gradients]
        mean = self.simulator.step(buckets, present=present)[0][0].flat.view_as(self.x)
        self.x = self.x - self.rates * mean
        return mean

    def keep(self, chosen: Tensor) -> None:
        """Goes on with the chosen runs (bool per run) alone; their memory follows by name."""
        self.x, self.rates = self.x[chosen], self.rates[chosen]
        self.names = [name for name, stays in zip(self.names, chosen.tolist(), strict=True) if stays]
        self._lay_out()

    @property
    def residual(self) -> Tensor:
        """The memory of worker 0, [runs, d], of the feedback scheme's first slot."""
        (slot, *_) = self.simulator.stores[0].state_dict().values()
        return torch.stack([slot[name].double().view(-1) for name in self.names])


def descend(
    lanes: Lanes,
    gradients: Gradients,
    steps: int,
    every: int = 1,
    present: Callable[[int], Sequence[int]] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(t, |mean gradient|^2 per run, x) at t = 0, every, 2 every, ... steps, looked at before step t is taken."""
    for t in range(steps + 1):
        found = gradients(lanes.x)
        if t % every == 0:
            yield t, found.mean(0).square().sum(1), lanes.x
        if t < steps:
            lanes.step(found, None if present is None else present(t))


def xi(delta: float) -> float:
    """sqrt(beta/theta) of EF21's analysis, sqrt(1 - delta)/(1 - sqrt(1 - delta)); 0 for delta = 1."""
    return sqrt(1 - delta) / (1 - sqrt(1 - delta)) if delta < 1.0 else 0.0


def quadratic_mean(constants: Sequence[float]) -> float:
    return sqrt(sum(c * c for c in constants) / len(constants))


def mean(constants: Sequence[float]) -> float:
    return sum(constants) / len(constants)
