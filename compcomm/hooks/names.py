"""A model's parameters by name: what state and random numbers are keyed by."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..bucket import Layout

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def inner(model: nn.Module) -> nn.Module:
    """What DDP wraps."""
    found: Any = model
    return found.module if isinstance(model, nn.parallel.DistributedDataParallel) else found


def named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Every parameter that wants a gradient, tied ones once, under the name that it has without wrappers.

    Raises:
        TypeError: a gradient would not be a dense floating-point tensor.
    """
    found: list[tuple[str, nn.Parameter]] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            for wrapper in _WRAPPERS:
                name = name.replace(wrapper, "")
            check_dtype(name, parameter.dtype)
            found.append((name, parameter))
    untyped: Any = module
    for name, part in untyped.named_modules():
        if getattr(part, "sparse", False) is True and isinstance(part, nn.Embedding | nn.EmbeddingBag):
            raise TypeError(
                f"attach: module {name!r} makes sparse gradients ({type(part).__name__}(sparse=True)), which have no "
                f"flat bucket. Build it with sparse=False; TopK(...) then sends few rows' worth of bytes."
            )
    return found


def check_dtype(name: str, dtype: torch.dtype, call: str = "attach") -> None:
    """Gradients are floating-point numbers.

    Raises:
        TypeError: naming the parameter.
    """
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise TypeError(
            f"{call}: the gradient of {name!r} is {dtype}: compcomm averages float16, bfloat16, float32 and float64. "
            f"For a complex parameter, keep torch.view_as_real(...) of it as the parameter; freeze others with "
            f"requires_grad_(False)."
        )


def layout(parameters: list[tuple[str, nn.Parameter]]) -> Layout:
    """All parameters, one after the other."""
    return Layout.of((name, p.shape) for name, p in parameters)
