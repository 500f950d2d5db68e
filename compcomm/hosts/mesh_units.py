"""What an all-reduce over a replicate dimension holds: parameters by name where a model is known, else a unit's number.

A *unit* is what FSDP2 reduces at once: the parameters of one ``fully_shard`` or ``replicate`` call that no call further
in has taken. What arrives is its flat gradient; a layout says what lies where.
"""

from __future__ import annotations

import weakref
from math import prod
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.layout import Layout, Segment
from ..core.state import StateError
from .fsdp_internals import averaged_over, idle, reducing
from .names import check_dtype, plain

COLUMNS = 1024
"""Of the matrix that stands for a unit without names."""


class Units(Protocol):
    """Tells what an all-reduce in a backward pass holds."""

    parameters: list[tuple[str, nn.Parameter]] | None
    layouts: list[Layout]

    @property
    def rest(self) -> bool:
        """Whether none is in the middle of a pass, as far as can be told."""
        ...

    def find(self, flat: Tensor, came: list[int]) -> int | None:
        """The unit, as a place in ``layouts``, after those that ``came`` in this pass; None: no gradient.

        Raises:
            StateError: it is not what is due.
        """
        ...


class Numbered:
    """Units without names: "unit 0" is the first that comes in a backward pass.

    Its n elements are a matrix of n // 1024 rows of 1024, and the rest, under 4 kB, travels exact. (As a vector nothing
    of it would be coded; as a column its zero rows would cost a bit per element, and as one row would be told never.)
    """

    def __init__(self) -> None:
        self.parameters: list[tuple[str, nn.Parameter]] | None = None
        self.layouts: list[Layout] = []

    @property
    def rest(self) -> bool:
        """See ``Units``."""
        return True

    def find(self, flat: Tensor, came: list[int]) -> int | None:
        """See ``Units``."""
        number, numel = len(came), flat.numel()
        if number == len(self.layouts):
            self.layouts.append(_matrix(f"unit {number}", numel))
        found = self.layouts[number]
        if found.numel != numel:
            raise StateError(
                f"mesh: all-reduce {number} of this backward pass has {numel} elements, and had {found.numel} before: "
                f"without names, units are told by their order. Bind the model before the first backward pass: "
                f"mesh.get_group(dim).bind(model). (DistributedDataParallel changes its buckets: use cc.attach there.)"
            )
        return number


def _matrix(name: str, numel: int) -> Layout:
    rows = numel // COLUMNS
    body = rows * COLUMNS
    whole = [Segment(name, (rows, COLUMNS), 0, body)] if rows else []
    rest = [Segment(f"{name} rest", (numel - body,), body, numel)] if body < numel else []
    return Layout([*whole, *rest], numel)


class Named:
    """The units of a model, told by which of them has just got its gradients; order is of no account.

    Parameters have this rank's shape, their shard's. Shards are padded to equal lengths, and the padding is zero.
    """

    def __init__(self, model: nn.Module, group: dist.ProcessGroup) -> None:
        names = {id(p): plain(name) for name, p in model.named_parameters()}
        self.parameters: list[tuple[str, nn.Parameter]] | None = []
        self.layouts: list[Layout] = []
        self._units: list[weakref.ref[Any]] = []  # torch keeps a group, and so this, until the group is destroyed
        for unit, parts in averaged_over(model, group):
            segments: list[Segment] = []
            start = 0
            for p, shape, padded in parts:
                name = names.get(id(p))
                if name is None:
                    raise StateError(
                        f"bind: a parameter of shape {list(p.shape)} is not in {type(model).__name__}: it is gathered. "
                        f"Bind the model right after fully_shard(...), before its first forward pass."
                    )
                check_dtype(name, p.dtype, "bind")
                if prod(shape):
                    segments.append(Segment(name, shape, start, start + prod(shape)))
                    local = nn.Parameter(torch.empty(shape, dtype=p.dtype, device="meta"))
                    self.parameters.append((name, local))
                start += padded
            self._units.append(weakref.ref(unit))
            self.layouts.append(Layout(segments, start))
        if not self._units:
            raise StateError(
                f"bind: {type(model).__name__} has nothing that is averaged over this group. Give what cc.mesh(...) "
                f"returned to fully_shard(model, mesh=mesh) or replicate(model, mesh=mesh) first."
            )

    @property
    def rest(self) -> bool:
        """See ``Units``."""
        return all(idle(unit()) for unit in self._units)

    def find(self, flat: Tensor, came: list[int]) -> int | None:
        """See ``Units``."""
        numel = flat.numel()
        due = [i for i, unit in enumerate(self._units) if i not in came and reducing(unit())]
        fits = [i for i in due if self.layouts[i].numel == numel]
        if fits:
            return fits[0] if self.layouts[fits[0]].segments else None  # else this rank's shards are empty
        if not due:
            return None
        first = [s.name for s in self.layouts[due[0]].segments[:1]]
        raise StateError(
            f"mesh: a unit's gradient has {numel} elements, where that of {first} has {self.layouts[due[0]].numel}: a "
            f"parameter of it got no gradient in this pass, or was frozen or unfrozen since bind(model). Let every "
            f"parameter take part, or call model.set_reduce_scatter_unused_params(True) (torch 2.13)."
        )
