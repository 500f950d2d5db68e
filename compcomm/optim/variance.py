"""From Adam's variance to the frozen denominator of what comes after the warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt

import torch
from torch import Tensor

from ..compressor import ops
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


def check_floor(call: str, value: object) -> None:
    """Raises ValueError for what is no floor of the variance."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ValueError(
            f"{call}(v_floor={value!r}): a part of the root mean square of sqrt(v), in [0, 1); 0.1 is the default, 0 "
            f"the published formula."
        )
