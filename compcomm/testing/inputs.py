"""What the checks feed: ordinary vectors, and the ones that hurt."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from functools import cache
from math import sqrt
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..core.layout import Layout, Segment

T = TypeVar("T")

SIZES = (1, 2, 15, 16, 17, 300, 511, 512, 513, 1000)
"""Elements: around the lanes of sixteen, around a block of 512, and numbers that fit nothing."""


def coding(described: T) -> T:
    """The same compressor or reducer, without its exception for small tensors: what is not 1-D is coded."""
    if not is_dataclass(described) or isinstance(described, type):
        return described
    changed: dict[str, Any] = {}
    for f in fields(described):
        value = getattr(described, f.name)
        if f.name == "dense_below":
            changed[f.name] = 1
        elif isinstance(value, dict):
            changed[f.name] = {k: coding(v) for k, v in cast("dict[str, object]", value).items()}
        elif is_dataclass(value):
            changed[f.name] = coding(value)
    return replace(described, **changed) if changed else described  # pyright: ignore[reportReturnType]


def segment(numel: int, name: str = "w") -> Segment:
    """A parameter that is not 1-D, and so not exact for its shape."""
    return Segment(name, (1, numel), 0, numel)


def vectors(numel: int, seed: int = 0) -> dict[str, Tensor]:
    """Named vectors: random ones with light and heavy tails, and the extremes on which bounds are attained.

    The last two families are the worst cases of quantisers under a max norm: one element at the norm, all others at
    half a level (rounding to nearest) or at the level that makes the relative variance largest (random rounding).
    """
    return {name: v.clone() for name, v in _vectors(numel, seed).items()}


def rows(numel: int, seed: int = 0) -> tuple[list[str], Tensor]:
    """The names of ``vectors``, and the vectors as the rows of a matrix."""
    found = _vectors(numel, seed)
    return list(found), torch.stack(list(found.values()))


@cache
def _vectors(numel: int, seed: int) -> dict[str, Tensor]:
    """Drawn once: every check asks for the same ones. Others get copies, which they may write to."""
    g = torch.Generator().manual_seed(seed)
    normal = torch.randn(numel, dtype=torch.float32, generator=g)
    wide = torch.randn(2, numel, dtype=torch.float32, generator=g).square().sum(0).div(2).sqrt().clamp_min(1e-3)
    place = torch.arange(numel, dtype=torch.int64)
    found = {
        "gaussian": normal,
        "student-t": normal / wide,
        "lognormal": (3 * torch.randn(numel, dtype=torch.float32, generator=g)).exp() * normal.sign(),
        "1-sparse": (place == numel // 2) * -2.5,
        "constant": torch.full((numel,), 0.3, dtype=torch.float32),
        "negative": torch.full((numel,), -7.0, dtype=torch.float32),
        "alternating": 1.0 - 2.0 * (place % 2),
        "ramp": (place + 1.0) / numel,
        "tiny": normal * 1e-20,
        "huge": normal * 1e15,
        "scales": normal * 10.0 ** -(place % 7),
    }
    for s in (1, 3, 7, 15, 127):
        n = min(numel, 512)
        worst = (sqrt(s**4 + (n - 1) * s**2) - s**2) / max(1, n - 1)
        for name, level in (("half a level", 0.5), ("the worst level", worst)):
            found[f"one over {name} of {s}"] = torch.where(place % 512 == 0, 1.0, level / s)
    return {name: v.float() for name, v in found.items()}


MODEL = (
    ("embedding", (40, 31)),
    ("layer.weight", (64, 48)),
    ("layer.bias", (48,)),
    ("norm", (31,)),
    ("temperature", ()),
    ("small", (7, 5)),
    ("head", (33, 37)),
)
"""Parameters of a little model: three that are coded by default, and four that are exact."""


@cache
def model_layout(names: tuple[str, ...] | None = None) -> Layout:
    """The model's parameters, or those named, in that order."""
    shapes = dict(MODEL)
    return Layout.of((n, shapes[n]) for n in (names or tuple(shapes)))


def gradient(rank: int, step: int, seed: int = 0) -> dict[str, Tensor]:
    """Named gradients: a part that all ranks share, and as much noise of their own."""
    return {n: t.clone() for n, t in _gradient(rank, step, seed).items()}


@cache
def _gradient(rank: int, step: int, seed: int) -> dict[str, Tensor]:
    shared = torch.Generator().manual_seed(1_000_003 * seed + step)
    own = torch.Generator().manual_seed(1_000_003 * seed + 7919 * (rank + 1) + step)
    return {
        n: torch.randn(s, dtype=torch.float32, generator=shared) + torch.randn(s, dtype=torch.float32, generator=own)
        for n, s in MODEL
    }
