"""Optimizers with flat state: lists of parameters and gradients of any shape beside flat fp32 moments.

Parameter i has elements ``[starts[i], starts[i] + numel_i)`` of the moments, in row-major order. All is computed in
fp32 whatever the parameters and gradients are (in fp64 where one that is read is fp64) and rounded to nearest even when
stored. A term whose factor is 0 is left out: its tensor is not read for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_float
from typing import NamedTuple

import torch
from torch import Tensor

from .rows import flag

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Piece(NamedTuple):
    """A parameter, its gradient (None: zeros) and where it lies in the moments."""

    param: Tensor
    grad: Tensor | None
    span: slice


def pieces(
    op: str, params: Sequence[Tensor], grads: Sequence[Tensor], starts: Sequence[int], numel: int, optional: bool
) -> list[Piece]:
    """The lists as pieces of moments of ``numel`` elements. ``optional``: a gradient of 0 elements counts as zeros."""
    found = list[Piece]()
    for i, (p, g, start) in enumerate(zip(params, grads, starts, strict=True)):
        for name, t in (("params", p), ("grads", g)):
            if t.layout is not torch.strided:
                raise ValueError(f"compcomm.{op}: {name}[{i}] is {t.layout}; call .to_dense()")
            if t.dtype not in DTYPES:
                raise TypeError(
                    f"compcomm.{op}: {name}[{i}] is {t.dtype}; parameters and gradients are "
                    f"{', '.join(str(d).removeprefix('torch.') for d in DTYPES)}"
                )
        missing = optional and g.numel() == 0
        if p.shape != g.shape and not missing:
            raise ValueError(
                f"compcomm.{op}: grads[{i}] has shape {tuple(g.shape)}, but params[{i}] has {tuple(p.shape)}"
            )
        if start < 0 or start + p.numel() > numel:
            raise ValueError(
                f"compcomm.{op}: starts[{i}] is {start}: params[{i}] takes elements {start}..{start + p.numel()} of "
                f"{numel}"
            )
        found.append(Piece(p, None if missing else g, slice(start, start + p.numel())))
    return found


def given(factor: float) -> bool:
    """Whether a factor is more than 0 once it is an fp32 number."""
    return c_float(factor).value != 0.0


def _wide(*tensors: Tensor | None) -> torch.dtype:
    """What is computed in where these are read."""
    return torch.float64 if any(t is not None and t.dtype is torch.float64 for t in tensors) else torch.float32


def _flat(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.reshape(-1).to(dtype)


def _root(x: Tensor) -> Tensor:
    """The square root, correctly rounded in fp32: torch's own is not where it calls MKL."""
    return x.to(torch.float64).sqrt().to(x.dtype)


@torch.no_grad()
def adam(
    params: Sequence[Tensor], grads: Sequence[Tensor], starts: Sequence[int], mean: Tensor, square: Tensor,
    beta1: float, beta2: float, scale: float, rate: float, correction: float, eps: float, decay: float, l2: float,
) -> None:  # fmt: skip
    """One step of Adam: with ``g = scale*grad + l2*p``,

    ``m <- beta1*m + (1 - beta1)*g``, ``v <- beta2*v + (1 - beta2)*g*g`` and
    ``p <- p - (rate*(m/(sqrt(v)*correction + eps)) + decay*p)``.
    """
    for p, g, span in pieces("adam", params, grads, starts, mean.numel(), False):
        assert g is not None
        wide = _wide(p, g)
        x, y = _flat(p, wide), _flat(g, wide) * scale
        if given(l2):
            y = y + x * l2
        m = mean[span].to(wide) * beta1 + y * (1.0 - beta1)
        v = square[span].to(wide) * beta2 + y * (1.0 - beta2) * y
        step = m / (_root(v) * correction + eps) * rate
        if given(decay):
            step = step + x * decay
        mean[span] = m
        square[span] = v
        p.copy_((x - step).view(p.shape))


@torch.no_grad()
def momentum(
    grads: Sequence[Tensor], params: Sequence[Tensor], starts: Sequence[int], mean: Tensor, out: Tensor,
    beta: float, scale: float, l2: float, status: Tensor,
) -> None:  # fmt: skip
    """``out <- beta*mean + (1 - beta)*(scale*grad + l2*p)``; ``out`` may be ``mean``.

    A gradient of 0 elements counts as zeros. ``status[0]``: an element of a gradient is not finite.
    """
    for p, g, span in pieces("momentum", params, grads, starts, mean.numel(), True):
        wide = _wide(g, p if given(l2) else None)
        y = torch.zeros(p.numel(), dtype=wide, device=p.device) if g is None else _flat(g, wide)
        flag(status, 0, ~torch.isfinite(y))
        y = y * scale
        if given(l2):
            y = y + _flat(p, wide) * l2
        out[span] = mean[span].to(wide) * beta + y * (1.0 - beta)


@torch.no_grad()
def descend(
    params: Sequence[Tensor], starts: Sequence[int], mean: Tensor, denominator: Tensor, rate: float, decay: float
) -> None:
    """``p <- p - (rate*(mean/denominator) + decay*p)``."""
    for p, _, span in pieces("descend", params, params, starts, mean.numel(), False):
        wide = _wide(p)
        x = _flat(p, wide)
        step = mean[span].to(wide) / denominator[span].to(wide) * rate
        if given(decay):
            step = step + x * decay
        p.copy_((x - step).view(p.shape))
