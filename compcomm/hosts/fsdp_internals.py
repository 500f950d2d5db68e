"""What torch keeps to itself of ``fully_shard``, read here and nowhere else (torch 2.9 to 2.15).

A *unit* is a parameter group of FSDP2: what one call of ``fully_shard`` took, and one reduce-scatter brings. Its
gradients lie in a buffer of W equal rows, row r with shard r of every parameter that has one, in the group's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib import import_module
from math import prod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from ..core.layout import Layout
from .names import plain

_collectives: Any = import_module("torch.distributed.fsdp._fully_shard._fsdp_collectives")
_SINCE = "2.9"


class Unit:
    """One parameter group, on this rank. ``number``: its place among the model's."""

    def __init__(self, number: int, state: Any, group: Any, names: dict[int, str]) -> None:
        self.number, self._state, self._group = number, state, group
        self.names = [_name(p, names) for p in group.fsdp_params]
        self.modules: tuple[nn.Module, ...] = tuple(group.modules)
        self.device: torch.device = group.device
        self._layouts: dict[object, Layout] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Its parameters, sharded, in the order of ``names``; not the same objects after the first forward pass."""
        return [p.sharded_param if self.begun else _registered(p) for p in self._group.fsdp_params]

    @cached_property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that hold its shards; None: each holds everything."""
        return getattr(self._group.mesh_info, "shard_process_group", None)

    @property
    def mesh(self) -> Any:
        """The ``DeviceMesh`` that it is sharded over."""
        return self._group.mesh_info.mesh

    @property
    def identity(self) -> int:
        """Equal for two units of the same parameter group."""
        return id(self._group)

    @property
    def outermost_rank(self) -> int:
        """The first of all ranks of the mesh that its mesh is a part of, which speaks for all of them."""
        root = self.mesh._get_root_mesh() if hasattr(self.mesh, "_get_root_mesh") else None
        return int((self.mesh if root is None else root).mesh.min())

    @property
    def tensor_parallel(self) -> bool:
        """Whether its parameters were sharded by something else before, over other dimensions of the mesh."""
        return any(getattr(p, "is_dtensor", False) for p in self._group.fsdp_params)

    @property
    def replicated(self) -> bool:
        """Whether FSDP averages over replicas by itself, over another dimension of its mesh."""
        return getattr(self._group.mesh_info, "replicate_mesh_dim", None) is not None

    @property
    def divisor(self) -> float | None:
        """What the user lets sums be divided by (``set_gradient_divide_factor``); None: the number of ranks."""
        return self._group.gradient_divide_factor

    @property
    def several(self) -> bool:
        """Whether its module has other parameter groups beside it."""
        return len(_groups(self._state)) > 1

    @property
    def begun(self) -> bool:
        """Whether a forward pass has been."""
        return self._state._is_root is not None

    @property
    def outermost(self) -> tuple[nn.Module, ...]:
        """Its root: the module whose forward pass is around all others', once one has been. It may have no parameters
        left for a unit of its own."""
        return tuple(self._state._state_ctx.all_states[0]._modules)

    @property
    def root(self) -> object:
        """What all units of one root have in common, once a forward pass has been."""
        return self._state._state_ctx

    @property
    def finishing(self) -> bool:
        """Whether FSDP has still to finish a backward pass: its last callback is due, or was lost when one raised."""
        return bool(self._state._state_ctx.post_backward_final_callback_queued)

    def comm(self, kind: str) -> Any:
        """What carries its "reduce_scatter" or "all_gather"."""
        return getattr(self._group, f"_{kind}_comm")

    def set_comm(self, kind: str, comm: Any) -> None:
        """Lets ``comm`` carry it."""
        setattr(self._group, f"_{kind}_comm", comm)

    @property
    def hook(self) -> Any:
        """What ``set_all_reduce_hook`` was given, or None."""
        return self._group._all_reduce_hook

    @hook.setter
    def hook(self, hook: Any) -> None:
        self._group._all_reduce_hook = hook

    @property
    def sums(self) -> bool:
        """Whether reduce-scatters are sums, which FSDP then divides: see ``set_force_sum_reduction_for_comms``."""
        return self._group.force_sum_reduction_for_comms

    @sums.setter
    def sums(self, value: bool) -> None:
        self._group.force_sum_reduction_for_comms = value

    def post_divisor(self, dtype: torch.dtype) -> float:
        """What FSDP divides the reduce-scatter's sum by once it is there, and once the hook has averaged it."""
        g = self._group
        found = _collectives._get_gradient_divide_factors(
            self.group, None, dtype, self.device.type, g.gradient_divide_factor, g.force_sum_reduction_for_comms
        )[1]
        return 1.0 if found is None else float(found)

    def layout(self, world: int, everything: bool = False) -> Layout:
        """The buffer of gradients: of the parameters that want one now; or of weights, ``everything``.

        A parameter that is sharded along dimension k > 0 lies in it as its shards one after the other, which is a
        parameter of d0 W x ... x dk / W x ... that is cut by rows.
        """
        every = self._group.fsdp_params
        # All that is asked of each parameter in every pass: which want a gradient may change between two.
        wanted = () if everything else tuple([p.sharded_param.requires_grad for p in every])
        order = None if everything else _order(self._group)
        found = self._layouts.get((wanted, order))
        if found is None:
            chosen = [every[i] for i in order or range(len(every)) if everything or wanted[i]]
            name = dict(zip(map(id, every), self.names, strict=True))
            found = Layout.of((name[id(p)], _by_rows(p, world)) for p in chosen).sharded(world)
            self._layouts[wanted, order] = found
        return found


def units(model: nn.Module) -> list[Unit]:
    """The units of a model, in the order of its modules; those of ``fully_shard([a, b])`` once. Empty: it is not
    sharded by ``fully_shard``.

    Raises:
        TypeError: this torch is too old.
        RuntimeError: it is another than is known here.
    """
    names = {id(p): plain(name) for name, p in model.named_parameters()}
    try:
        return [Unit(number, state, group, names) for number, (state, group) in enumerate(_states(model))]
    except AttributeError as error:
        raise RuntimeError(
            f"attach: fully_shard of torch {torch.__version__} is not as in {_SINCE} to 2.15: {error}. Use one of "
            f"these, or DistributedDataParallel."
        ) from error


def strangers(model: nn.Module, known: Sequence[Unit]) -> list[str]:
    """Names of parameters that ``fully_shard`` has taken since ``known`` were the model's units."""
    groups = {u.identity for u in known}
    names = {id(p): plain(name) for name, p in model.named_parameters()}
    new = [group for _, group in _states(model) if id(group) not in groups]
    return [_name(p, names) for group in new for p in group.fsdp_params]


def _states(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Every parameter group of a model, once, with the state that has it."""
    seen: set[int] = set()
    for module in model.modules():
        if not any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            continue
        if not hasattr(module, "set_custom_reduce_scatter"):
            raise TypeError(
                f"attach({type(model).__name__}): fully_shard lets others carry its collectives from torch {_SINCE} "
                f"on, and this is {torch.__version__}. Upgrade torch, or use DistributedDataParallel."
            )
        untyped: Any = module
        state = untyped._get_fsdp_state()
        for group in _groups(state):
            if id(group) not in seen:
                seen.add(id(group))
                yield state, group


def averaged_over(model: nn.Module, group: dist.ProcessGroup) -> Iterator[tuple[Any, list[Part]]]:
    """The units that FSDP averages over ``group``, a replicate dimension of theirs, in the order of modules, and what
    each one's reduced buffer is made of. What is frozen is not in it.

    Raises:
        RuntimeError: this torch is another than is known here.
    """
    try:
        for _, unit in _states(model):
            if getattr(unit.mesh_info, "replicate_process_group", None) is group:
                wanted = [p for p in unit.fsdp_params if p.sharded_param.requires_grad]
                yield (
                    unit,
                    [Part(p.sharded_param, tuple(p.sharded_size), p.padded_sharded_param_size.numel()) for p in wanted],
                )
    except AttributeError as error:
        raise RuntimeError(f"bind: FSDP2 of torch {torch.__version__} is not as in 2.13: {error}.") from error


class Part(NamedTuple):
    """A sharded parameter, this rank's shape, and its elements in a unit's buffer, padding included."""

    parameter: nn.Parameter
    shape: tuple[int, ...]
    padded: int


def reducing(unit: Any) -> bool:
    """Whether a unit, None once its model is gone, has got its gradients in this pass and reduces them, or has."""
    return unit is not None and unit._training_state.name == "POST_BACKWARD"


def idle(unit: Any) -> bool:
    """Whether a unit is between two passes."""
    return unit is None or unit._training_state.name == "IDLE"


def dimensions(unit: Unit) -> tuple[str, ...]:
    """Of the mesh that a unit's is a part of."""
    root = unit.mesh._get_root_mesh() if hasattr(unit.mesh, "_get_root_mesh") else None
    return tuple((root.mesh_dim_names if root is not None else None) or ())


def replicas(unit: Unit, dimension: str) -> dist.ProcessGroup:
    """The process group of another dimension of the mesh that a unit's is a part of.

    Raises:
        ValueError: there is no such dimension.
    """
    known = dimensions(unit)
    own: Sequence[str] = unit.mesh.mesh_dim_names or ()
    if dimension not in known or dimension in own:
        others = [n for n in known if n not in own]
        hint = f"The others are {', '.join(map(repr, others))}." if others else (
            "Shard on a sub-mesh: mesh = init_device_mesh(device, (nodes, ranks), mesh_dim_names=('replicate', "
            "'shard')); fully_shard(module, mesh=mesh['shard'])."
        )  # fmt: skip
        raise ValueError(
            f"attach(between={dimension!r}): the mesh that the model is sharded over has no other dimension of that "
            f"name beside it. {hint} Or give the process group of the ranks that hold the same shard."
        )
    return unit.mesh._get_root_mesh().get_group(dimension)


def is_default(comm: Any) -> bool:
    """Whether a unit's collectives are carried by FSDP itself, in the plain way."""
    return type(comm).__name__ in ("DefaultReduceScatter", "DefaultAllGather")


def _groups(state: Any) -> list[Any]:
    several = getattr(state, "_fsdp_param_groups", None)
    if several is not None:
        return list(several)
    one = state._fsdp_param_group  # before 2.12
    return [] if one is None else [one]


def _registered(parameter: Any) -> nn.Parameter:
    """What its module has now: a user may have put another one there, which FSDP takes in the first forward pass."""
    info = parameter._module_info
    return getattr(info.module, info.param_name)


def _name(parameter: Any, names: dict[int, str]) -> str:
    found = names.get(id(_registered(parameter)))
    if found is None:
        info = parameter._module_info
        raise ValueError(
            f"attach: the unit of {type(info.module).__name__} has a parameter, {info.param_name!r}, that the model's "
            f"named_parameters() lack. Give attach the outermost module, with all that fully_shard([...]) took."
        )
    return found


def _order(group: Any) -> tuple[int, ...] | None:
    """In which order the parameters lie in the buffer: from 2.15 on grouped by the type of their gradients, which is
    known after a forward pass. None: in that of the group."""
    order = getattr(group, "_reduce_scatter_param_indices", None)
    return None if order is None else tuple(order)


def _by_rows(parameter: Any, world: int) -> tuple[int, ...]:
    shape, dim = tuple(parameter._orig_size), parameter.fsdp_placement.dim
    if dim == 0:
        return shape
    cut = list(shape)
    cut[dim] //= world
    cut[0] *= world
    assert prod(cut) == prod(shape), (shape, dim, world)
    return tuple(cut)
