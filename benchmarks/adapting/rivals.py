"""Rules for densities on recorded gradients: what each sends when all lose the same.

A rule has one number that scales what it keeps: uniform and LEGACY their density, the global top-k its own, L-GreCo
alpha. It is raised until the rule loses no more than one density for all does, counted twice: as the sum of the layers'
L2 errors, and as the sum of their squares. Accordion compares a gradient with an earlier one; `train` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import record
import torch
from torch import Tensor

import compcomm as cc
from compcomm.combine.per_parameter import assigned
from compcomm.combine.setting import setting, tuned
from compcomm.core import structure
from compcomm.feedback import slabs

from .gains import MODELS, SMALL, decided

Row = dict[str, Any]
Densities = Mapping[str, float]
HALVINGS = 10
"""Of an interval of ten octaves: densities are then within a hundredth of an octave."""


class Loss(NamedTuple):
    norms: float
    squares: float


class Gradient:
    """The coded parameters of a recording, and what a choice of densities loses and sends."""

    def __init__(self, named: Mapping[str, Tensor], base: cc.TopK) -> None:
        layout = cc.Layout.of((n, t.shape) for n, t in named.items())
        self.base, self.ratio = base, setting("rivals", base)
        self.named = {s.name: named[s.name] for s in layout.segments if not base.exact(s)}
        self.layout = cc.Layout.of((n, t.shape) for n, t in self.named.items())
        self.flat = torch.cat([t.reshape(-1) for t in self.named.values()])
        self.scratch = torch.empty_like(self.flat)

    def lost(self, densities: Densities) -> Loss:
        """By coding: what encoding leaves behind."""
        form = assigned(self.base, tuple(sorted(densities.items())))
        x = cc.Bucket(self.scratch.copy_(self.flat), self.layout)
        form.encode_(x, cc.Rng(0, 0, 0))
        errors = slabs.norms(x, cc.Context()).numpy()
        return Loss(float(errors.sum()), float(np.square(errors).sum()))

    def bytes(self, densities: Densities) -> int:
        found = (tuned(self.base, densities[s.name]).section(s.numel) for s in self.layout.segments)
        return sum(-(-n // 4) * 4 for n in found)

    def chosen(self, reducer: cc.Reducer) -> Densities:
        """What a controller decides after one step in the simulator."""
        simulator = decided(reducer, self.named)
        store = simulator.stores[0]
        return structure.choices(simulator.reducer, store.segments(), store)


def run(models: tuple[str, ...] = MODELS, folder: Path = record.FOLDER, quick: bool = False) -> list[Row]:
    """A row per model and rule."""
    rows: list[Row] = []
    for model in models:
        text = "TopK(ratio=0.01{})".format(SMALL if model == "digits" else "")
        g = Gradient(record.load(model, folder, quick=quick), cc.parse(text))
        due, dense = g.lost(dict.fromkeys(g.named, g.ratio)), 4 * g.layout.numel
        for name, rule in rules(g, 1 << 12 if model == "digits" else 1 << 16).items():
            row: Row = {"model": model, "name": name, "reducer": text}
            for kind in Loss._fields:
                found = within(g, rule, kind, getattr(due, kind))
                sent = g.bytes(found) if found else None
                row |= {
                    f"{kind}_bytes": sent,
                    f"{kind}_ratio": dense / sent if sent else None,
                    f"{kind}_least": min(found.values(), default=None),
                    f"{kind}_most": max(found.values(), default=None),
                }
            rows.append(row)
            ratios = (f"{row[f'{kind}_ratio'] or 0:8.1f}x at equal {kind}" for kind in Loss._fields)
            print(f"{model:12} {name:10} {', '.join(ratios)}", flush=True)
    return rows


def rules(g: Gradient, threshold: int) -> dict[str, Callable[[float], Densities]]:
    """By name, the densities at a scale of 1/64 to 16; 1 is the scale of the one density for all."""
    own = g.ratio

    def uniform(scale: float) -> Densities:
        return {n: min(1.0, scale * own) for n in g.named}

    def global_topk(scale: float) -> Densities:
        ratio = scale * own
        return g.chosen(cc.GlobalTopK(cc.parse(repr(tuned(g.base, ratio))), every=1)) if ratio < 1 else uniform(scale)

    def legacy(scale: float) -> Densities:
        """Large layers with a quarter of the density of small ones."""
        small = tuned(g.base, min(1.0, scale * own))
        rule = cc.SizeRule(small, large=min(1.0, scale * own) / 4, threshold=threshold)
        return {s.name: rule.at(s, 0) for s in g.layout.segments}

    def lgreco(candidates: tuple[float, ...] | None, scale: float) -> Densities:
        alpha = scale**-0.25  # an error moves less than a density
        try:
            return g.chosen(cc.LGreCo(g.base, candidates=candidates, every=1, alpha=alpha))
        except ValueError:
            return {n: min(1.0, 16 * own) for n in g.named}  # the largest candidate

    return {
        "uniform": uniform,
        "L-GreCo": partial(lgreco, None),
        "L-GreCo from 1/4096": partial(lgreco, tuple(own * 2.0**k for k in range(-12, 5))),
        "global top-k": global_topk,
        "LEGACY": legacy,
    }


def within(g: Gradient, rule: Callable[[float], Densities], kind: str, limit: float) -> Densities:
    """The densities of fewest bytes that a rule was seen to have within the limit; none: nothing was."""
    low, high, best, least = -6.0, 4.0, dict[str, float](), float("inf")
    at = 0.0  # the scale of the one density first
    for _ in range(1 + HALVINGS):
        found = rule(2.0**at)
        fits = getattr(g.lost(found), kind) <= limit * (1 + 1e-9)
        if fits and (sent := g.bytes(found)) < least:
            best, least = dict(found), sent
        low, high = (low, at) if fits else (at, high)
        at = (low + high) / 2
    return best
