"""A model's parameters by name: what state and random numbers are keyed by."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.layout import Layout
from ..engine.host import Host
from ..engine.replicas import few
from .sharded import check_whole_parameter

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


DDP = Host(
    call="attach",
    make="attach",
    what="attachment",
    over="was detached. Wrap the model in a new DDP(...).",
    unnamed="Call state.bind(model) before the first backward pass, or use cc.attach(model, reducer).",
    nameless="Call state.bind(model) first.",
    unfinished="After an error, run model.reducer._reset_state() and one more backward pass on every rank, then call "
    "{call} again; or go back to the last checkpoint.",
    alike="Convert the model alike on every rank, before DDP(...).",
    alone="had requires_grad=False when DDP(...) was made, or came later: in no bucket, so each rank trains its own. "
    "Make DDP(...) anew after unfreezing. Where each rank shall have its own, tell DDP before it is made: "
    "DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, [names]).",
    regroup="Train before that, or wrap the model in a new DDP(...) and attach.",
)
"""How errors speak to who has a DDP model."""

SHARDED = Host(
    call="attach",
    make="attach",
    what="attachment",
    over="was detached. Attach again before the first forward pass of a model that was sharded anew.",
    unfinished="After an error, call reset_iter_state() of the root module (torch 2.13 or later) on every rank, run "
    "one more forward and backward pass, then call {call} again; or go back to the last checkpoint.",
    alike="Convert the model alike on every rank, before fully_shard(...).",
    alone="is a part of no module that fully_shard has taken, so each rank trains its own. Call fully_shard(model) on "
    "the outermost module too.",
    regroup="Train before that, or shard the model anew and attach.",
)
"""How errors speak to who has a model of ``fully_shard``."""


def inner(model: nn.Module) -> nn.Module:
    """What DDP wraps."""
    found: Any = model
    return found.module if isinstance(model, nn.parallel.DistributedDataParallel) else found


def every(model: nn.Module) -> dict[int, str]:
    """The name of every parameter, frozen ones too, by its id."""
    return {id(p): plain(name) for name, p in inner(model).named_parameters()}


def named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Every parameter that wants a gradient, tied ones once, under the name that it has without wrappers.

    Raises:
        TypeError: a gradient would not be a dense floating-point tensor.
    """
    return those(module, {id(p) for p in module.parameters() if p.requires_grad})


def averaged(ddp: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What a DistributedDataParallel model averages: the parameters in its buckets, in the module's order and under the
    names that ``named`` gives.

    What wants a gradient is settled in ``DDP(...)`` for good: a parameter that was frozen since is still averaged, one
    that was unfrozen since is not (``unfrozen`` names those), and one that DDP was told to ignore never is: each rank
    may have its own, of another shape even.

    Raises:
        TypeError: a gradient would not be a dense floating-point tensor.
    """
    return those(inner(ddp), set(map(id, _in_buckets(ddp))))


def expected(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What DDP would average if it were made of ``module`` now; see ``averaged`` for what it does."""
    skip = _to_ignore(module)
    return those(module, {id(p) for n, p in module.named_parameters() if p.requires_grad and n not in skip})


def unfrozen(model: nn.Module, held: Container[int]) -> list[str]:
    """The parameters that want a gradient and that nobody averages: not among the ids ``held``, nor ignored by DDP.
    Each rank trains them apart, as without a hook."""
    found: dict[int, list[str]] = {}
    for name, parameter in inner(model).named_parameters(remove_duplicate=False):
        if parameter.requires_grad and id(parameter) not in held:
            found.setdefault(id(parameter), []).append(name)
    skip = _to_ignore(model)
    return [plain(names[0]) for names in found.values() if not any(n in skip for n in names)]


def unaveraged(names: list[str]) -> str:
    """What is wrong with what ``unfrozen`` names, and what to do."""
    return f"{few(names)} {DDP.alone}"


def plain(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def those(module: nn.Module, wanted: Container[int]) -> list[tuple[str, nn.Parameter]]:
    """The parameters whose ids are ``wanted``, all of which have dense floating-point gradients."""
    found = [(plain(name), p) for name, p in module.named_parameters() if id(p) in wanted]
    for name, parameter in found:
        check_dtype(name, parameter.dtype)
        check_whole_parameter("attach", name, parameter)
    untyped: Any = module
    for name, part in untyped.named_modules():
        kind = isinstance(part, nn.Embedding | nn.EmbeddingBag)
        if kind and getattr(part, "sparse", False) is True and id(part.weight) in wanted:
            raise TypeError(
                f"attach: module {name!r} makes sparse gradients ({type(part).__name__}(sparse=True)), which have no "
                f"flat bucket. Build it with sparse=False; TopK(...) then sends few rows' worth of bytes."
            )
    return found


def _to_ignore(model: Any) -> set[str]:
    """The names, within the module inside, that DDP was told to leave alone."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return set(model.parameters_to_ignore)
    return set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))


def _in_buckets(ddp: Any) -> Iterable[Tensor]:
    """The parameters in DDP's buckets. DDP keeps no list that Python can read, but two private calls tell: how many
    they are, which is enough where that is all of them; and empty buckets, for which it allocates the gradients' size
    for a moment."""
    every = list(inner(ddp).parameters())
    try:
        if ddp._get_ddp_logging_data()["num_parameter_tensors"] == len(every):
            return every
        return [p for bucket in ddp.reducer._get_zeros_like_grad_buckets() for p in bucket.parameters()]
    except (
        AssertionError,
        AttributeError,
        KeyError,
    ):  # another torch, or no reducer: what DDP would take if it were made now
        skip = _to_ignore(ddp)
        return (p for name, p in inner(ddp).named_parameters() if p.requires_grad and name not in skip)


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
