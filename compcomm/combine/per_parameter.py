"""One method at a setting of its own for each parameter, in one message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from ..compressors.wrapper import CompressorWrapper
from ..core.compressor import Compressor
from ..core.layout import Segment
from ..core.random import Rng, key
from ..core.reducer import Reducer
from ..core.rows import Find, Inputs
from .setting import field, owner, tuned

Values = tuple[tuple[str, float], ...]
"""(parameter, setting), for those that do not have the default."""


@dataclass(frozen=True, repr=False)
class _Assigned(CompressorWrapper):
    """``compressor`` at ``values[name]`` for the parameters named there, as it is for all others.

    A payload is still one message, and where only k differs (``per_row_k``) the kernels still treat a bucket in one
    call; otherwise in one call per setting. All else, the exact parameters and the memory too, is the compressor's own.
    """

    values: Values

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_memo", {})

    @property
    def unbiased(self) -> bool:
        return self.compressor.unbiased

    @property
    def sends_values(self) -> bool:
        """See ``core.compressor``."""
        return getattr(self.compressor, "sends_values", False)

    @property
    def per_row_k(self) -> bool:
        """See ``core.compressor``."""
        return getattr(self.compressor, "per_row_k", False)

    @property
    def unproven(self) -> bool:
        """See ``core.compressor``."""
        return getattr(self.compressor, "unproven", False)

    def of(self, segment: Segment) -> Compressor:
        return _named(self).get(segment.name, self.compressor)

    def delta(self, numel: int) -> float | None:
        found = [c.delta(numel) for c in {self.compressor, *_named(self).values()}]
        return None if None in found else min(d for d in found if d is not None)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        if _plain(self.compressor):
            self.compressor.encode_rows(i, gain, rng, hints, find)
            return
        for c, rows in self._groups(i.table, rng):
            c.encode_rows(i._replace(table=i.table[rows]), gain[rows], rng, {}, find)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        if _plain(self.compressor):
            self.compressor.decode_rows(wires, table, skip, out, scale, accumulate, rng, find)
            return
        for c, rows in self._groups(table, rng):
            c.decode_rows(wires, table[rows], skip, out, scale, accumulate, rng, find)

    def zero_rows(self, wire: Tensor, table: Tensor, out: Tensor, rng: Rng, find: Find) -> None:
        for c, rows in self._groups(table, rng):
            c.zero_rows(wire, table[rows], out, rng, find)

    def scatter_rows(self, wire: Tensor, table: Tensor, pieces: Tensor, out: Tensor, scale: float, grain: int) -> None:
        """See ``core.compressor``."""
        self.compressor.scatter_rows(wire, table, pieces, out, scale, grain)  # type: ignore[attr-defined]

    def _groups(self, table: Tensor, rng: Rng) -> list[tuple[Compressor, list[int]]]:
        """The rows of each setting, by the key of their parameters' names."""
        names = tuple(table[:, 5].tolist())
        memo: dict[object, list[tuple[Compressor, list[int]]]] = self._memo  # type: ignore[attr-defined]
        known = memo.get((rng.seed, names))
        if known is None:
            keyed = _keyed(self, rng.seed)
            found: dict[Compressor, list[int]] = {}
            for row, name in enumerate(names):
                found.setdefault(keyed.get(name, self.compressor), []).append(row)
            known = memo[rng.seed, names] = list(found.items())
        return known


def assigned(reducer: Any, values: Values) -> Any:
    """A settled reducer, each parameter with the setting that ``values`` gives it."""
    if not values:
        return reducer
    found = owner(reducer)
    if isinstance(found, Reducer):  # PowerSGD
        return _within(reducer, replace(found, ranks=tuple((name, int(rank)) for name, rank in values)))
    return _within(reducer, None, values)


def check_assignable(call: str, part: Any) -> None:
    """Raises ValueError where parameters cannot have a setting each."""
    found = owner(part)
    if not field(part):
        return
    probe = Segment("", (1 << 10, 1 << 10), 0, 1 << 20)
    if isinstance(found, Compressor) and found.slots(probe) and not getattr(found, "per_row_k", False):
        raise ValueError(
            f"{call}: {found!r} learns from the parameters that it sees, and a setting for each would upset that. Use "
            f"TopK(ratio=...)."
        )
    try:
        assigned(part, (("", getattr(found, field(part))),))
    except ValueError:
        raise ValueError(
            f"{call}: {part!r} needs one setting for all its parameters. Use TwoPhase({found!r}), or Partition with a "
            f"part for each setting."
        ) from None


def _within(part: Any, new: Any, values: Values = ()) -> Any:
    """``part`` with its compressor assigned, or its PowerSGD replaced by ``new``."""
    if isinstance(part, Compressor):
        return _Assigned(part, values)
    if part is owner(part):
        return new
    name = "compressor" if isinstance(getattr(part, "compressor", None), Compressor) else "reducer"
    return replace(part, **{name: _within(getattr(part, name), new, values)})


def _plain(c: Compressor) -> bool:
    """Whether rows of several settings go through one call."""
    inner = owner(c)
    return getattr(inner, "per_row_k", False)


@lru_cache(maxsize=256)
def _named(a: _Assigned) -> dict[str, Compressor]:
    return {name: tuned(a.compressor, value) for name, value in a.values}


@lru_cache(maxsize=256)
def _keyed(a: _Assigned, seed: int) -> dict[int, Compressor]:
    return {key(seed, name): c for name, c in _named(a).items()}
