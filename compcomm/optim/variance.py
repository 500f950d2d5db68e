"""From Adam's variance to the frozen denominator of what comes after the warm-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum, sqrt

import torch
from torch import Tensor

from ..core.compressor import ops
from ..core.state import StateError
from ..ops.reference.rows import root
from .flat import Flat


def freeze(flat: Flat, v: Tensor, floor: float, options: Sequence[tuple[float, float]]) -> list[float]:
    """v <- max(sqrt(v), floor * rms) * correction + eps, in place.

    rms is that of sqrt(v) over a parameter, and where that is zero, the floor is the rms over all parameters: an
    element without a gradient so far moves no faster than the others. ``options``: (correction, eps) of each group.
    The roots are summed in fp64 by one fixed tree, so all ranks get equal bits. ``floor=0``: sqrt(v) alone. Returns
    what sqrt(v) of each parameter was raised to at least.
    """
    least = [0.0] * len(flat.params)
    for batch in flat.batches:
        part = v[batch.start : batch.stop]
        part.copy_(root(part))
    if floor > 0.0:
        norms = torch.zeros(len(flat.params), dtype=torch.float64, device=v.device)
        ops.norms(v, flat.table(), norms)
        squares = [n * n for n in norms.tolist()]
        everywhere = sqrt(fsum(squares) / max(1, flat.numel))
        for i, square in enumerate(squares):
            rms = sqrt(square / max(1, flat.params[i].numel()))
            least[i] = floor * rms if rms > 0.0 else everywhere
            flat.view(v, i).clamp_(min=least[i])
    for part in flat.parts:
        correction, eps = options[part.group]
        for n in part.numbers:
            flat.view(v, n).mul_(correction).add_(eps)
    return least


def thaw(flat: Flat, d: Tensor, options: Sequence[tuple[float, float]]) -> Tensor:
    """A variance as Adam has it, from what a step divides by: v = ((d - eps) factor)^2. ``options``: (factor, eps) of
    each group (see ``factor``)."""
    v = d.clone()
    for part in flat.parts:
        factor, eps = options[part.group]
        for n in part.numbers:
            flat.view(v, n).sub_(eps).mul_(factor)
    return v.mul_(v)


def divisor(flat: Flat, v: Tensor, options: Sequence[tuple[float, float]]) -> Tensor:
    """The way back, up to rounding: d = sqrt(v)/factor + eps."""
    d = root(v)
    for part in flat.parts:
        factor, eps = options[part.group]
        for n in part.numbers:
            flat.view(d, n).div_(factor).add_(eps)
    return d


def factor(beta2: float, measured: int, steps: int, correction: float) -> float:
    """What brings sqrt(v) * ``correction``, v the mean of ``measured`` squares, to what Adam's would be after ``steps``
    of them: its own correction by 1 - b2^steps then gives the same size."""
    if not measured:
        return 1.0
    return sqrt((1.0 - beta2**steps) / (1.0 - beta2**measured)) / correction


def check_moments(vectors: Mapping[str, Tensor], frozen: int | None, others: Sequence[str]) -> None:
    """Raises StateError where a checkpoint lacks vectors or has too many. Due are ``others`` and the variance; once
    that is ``frozen``, it or what a step divides by, or both."""
    found, second = set(vectors) - {"exp_avg_sq", "denominator"}, set(vectors) & {"exp_avg_sq", "denominator"}
    due = second == {"exp_avg_sq"} if frozen is None else bool(second)
    if not due or found != set(others):
        what = "exp_avg_sq" if frozen is None else "exp_avg_sq or denominator"
        raise StateError(f"load_state_dict: moments {sorted(vectors)} where {', '.join([*others, what])} are due.")


def check_floor(call: str, value: object) -> None:
    """Raises ValueError for what is no floor of the variance."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ValueError(
            f"{call}(v_floor={value!r}): a part of the root mean square of sqrt(v), in [0, 1); 0.1 is the default, 0 "
            f"the published formula."
        )
