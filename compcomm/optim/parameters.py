"""What an optimizer is given: a model or parameters; and what it cannot take, said before anything happens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..hosts.attach import check_free
from ..hosts.names import (
    averaged,
    check_dtype,
    inner,
    named,
    unaveraged,
    unfrozen,
)
from ..hosts.sharded import check_whole, check_whole_parameter


class Parameters(NamedTuple):
    """Parameter groups with names, the DDP model whose hook is to be taken, or None, the parameters that were left
    out as they want no gradient, and the ids of those in the groups that DDP was told to ignore."""

    groups: list[dict[str, Any]]
    ddp: nn.parallel.DistributedDataParallel | None
    left: list[tuple[str, Tensor]]
    alone: set[int]


def find(call: str, given: Any, params: Any) -> Parameters:
    """The groups of ``given`` (a model, DDP or not, compiled or not; parameters; groups), or of ``params`` within it.

    Raises:
        TypeError: it is none of these, or has parameters that no replicated optimizer can take (FSDP's, sparse ones).
        ValueError: the DDP model has a hook already, parameters that no group has, or such as were unfrozen since.
    """
    model = getattr(given, "_orig_mod", given)
    if not isinstance(model, nn.Module):
        if params is not None:
            raise TypeError(
                f"{call}(params=...): this is for the groups of a model; the first argument is no model but a "
                f"{type(given).__name__}. Give the groups as the first argument."
            )
        return Parameters(*_groups(call, given, {}, None), set())
    check_whole(call, model, _SHARDED)
    ddp = model if isinstance(model, nn.parallel.DistributedDataParallel) else None
    if ddp is not None:
        check_free(call, ddp)
    of_model = named(inner(model))
    names = {id(p): n for n, p in of_model}
    buckets = set(names) if ddp is None else {id(p) for _, p in averaged(ddp)}
    late = [] if ddp is None else unfrozen(ddp, buckets)
    if late:
        raise ValueError(f"{call}: {unaveraged(late)}")
    groups = _groups(call, of_model if params is None else params, names, ddp)
    found = Parameters(*groups, set(names) - buckets)
    if params is None:
        found.left.extend((n, p) for n, p in inner(model).named_parameters() if not p.requires_grad)
    groups = found.groups
    if ddp is not None:
        held = {id(p) for group in groups for _, p in group["params"]}
        left = [n for n, p in of_model if id(p) in buckets and id(p) not in held]
        strange = [n for group in groups for n, p in group["params"] if id(p) not in names]
        if left or strange:
            which, what = (left, "in no group") if left else (strange, "not of the model")
            raise ValueError(
                f"{call}: {', '.join(which[:3])}{', ...' if len(which) > 3 else ''}: {what}. The optimizer takes over "
                f"the averaging of the DDP model, so its groups hold all parameters of that model that want a "
                f"gradient, and no others. Freeze the rest with requires_grad_(False) before DDP(...)."
            )
    return found


def _groups(call: str, given: Any, names: Mapping[int, str], ddp: Any) -> tuple[Any, Any, list[tuple[str, Tensor]]]:
    """Groups with ``params`` as (name, parameter) pairs, ``ddp``, and the parameters that want no gradient."""
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise TypeError(f"{call}({type(given).__name__}): give a model, its parameters, or a list of groups.")
    entries: list[Any] = list(given)
    if not entries:
        raise ValueError(
            f"{call}([]): there are no parameters. Give the model, or model.parameters(), called anew: what it returns "
            f"is read once."
        )
    found: list[dict[str, Any]] = [dict(e) for e in entries] if isinstance(entries[0], dict) else [{"params": entries}]
    count = 0
    out: list[tuple[str, Tensor]] = []
    for group in found:
        own: Any = group["params"]
        pairs: list[tuple[str, Any]] = []
        for item in [own] if isinstance(own, Tensor) else own:
            name, p = item if isinstance(item, tuple) else (None, item)
            if isinstance(p, Tensor):
                name = names.get(id(p), name or str(count))
                check(call, name, p)
            wanted = not isinstance(p, Tensor) or p.requires_grad
            (pairs if wanted else out).append((name or str(count), p))
            count += 1
        group["params"] = pairs
    devices = {p.device for group in found for _, p in group["params"] if isinstance(p, Tensor)}
    if len(devices) > 1:
        raise ValueError(
            f"{call}: parameters on {' and '.join(sorted(map(str, devices)))}; one process has one device. Move all of "
            f"them to one, before the optimizer is made."
        )
    return found, ddp, out


def check(call: str, name: str, p: Tensor) -> None:
    """Whether a parameter is a replicated tensor with a dense gradient.

    Raises:
        TypeError: it is not.
    """
    check_whole_parameter(call, name, p, _SHARDED)
    check_dtype(name, p.dtype, call)
    if p.grad is not None:
        check_gradient(call, name, p.grad)


def check_gradient(call: str, name: str, grad: Tensor) -> None:
    """Raises TypeError for a sparse gradient."""
    if grad.is_sparse:
        raise TypeError(
            f"{call}: the gradient of {name!r} is sparse, and the momentum of all elements travels. Build the "
            f"embedding with sparse=False."
        )


_SHARDED = (
    "and compressed momentum needs every rank to hold every parameter. Use DistributedDataParallel with this "
    "optimizer; or keep FSDP and torch.optim.AdamW."
)
