"""Where everything lies that PowerSGD sends of a bucket: flags, exact parameters and a factor in a first buffer, the
other factor in a second. Tables for the kernels are made once for a layout."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ..core.layout import Layout, Segment
from ..core.random import key
from .all_reduce import Digits


class LowRank(Protocol):
    """What is asked of a reducer: a matrix's (n, m, r), the columns memory has for it, one factor a step or both."""

    @property
    def alternate(self) -> bool: ...

    def sizes(self, segment: Segment) -> tuple[int, int, int] | None: ...

    def room(self, segment: Segment) -> int: ...


class FactorLayout:
    """``parts``: each matrix with its number and (n, m, r). ``head``: elements of the first buffer before its factor.
    ``numel``: elements of all P and of all Q. ``lines``: a factor's columns, to draw and orthonormalise."""

    def __init__(self, reducer: LowRank, layout: Layout, world: int, seed: int, device: str) -> None:
        self.count, self.device = len(layout.segments), device
        self.parts: list[tuple[int, Segment, tuple[int, int, int]]] = []
        self._exact: list[tuple[int, Segment, int]] = []
        rows = [sizes[0] for sizes in map(reducer.sizes, layout.segments) if sizes is not None]
        self.digits = Digits(world, sum(4 * -(-n // 32) for n in rows) if reducer.alternate else 0)
        self.flags = self.head = 2 + self.count + self.digits.count
        for number, s in enumerate(layout.segments):
            sizes = reducer.sizes(s)
            if sizes is not None:
                self.parts.append((number, s, sizes))
            elif s.numel:
                self._exact.append((number, s, 4 * self.head))
                self.head += s.numel
        self.numel = {"p": 0, "q": 0}
        self._places: list[tuple[int, int]] = []
        lines: dict[str, list[list[int]]] = {"p": [], "q": []}
        for _, s, (n, m, r) in self.parts:
            self._places.append((self.numel["p"], self.numel["q"]))
            for name, length in (("p", n), ("q", m)):
                lines[name].append([self.numel[name], -1, length, 0, 0, key(seed, s.name), r, 0])
                self.numel[name] += r * length
        self.row_of_p = self._rows_of_p().to(device)
        self._room = [reducer.room(s) for _, s, _ in self.parts]
        self._in_use = all(r == room for (*_, (_, _, r)), room in zip(self.parts, self._room, strict=True))
        self.lines = {name: self._table(rows) for name, rows in lines.items()}
        self._tables: dict[object, Tensor] = {}

    def _rows_of_p(self) -> Tensor:
        """For every element of P, the number of its row's bit."""
        first, found = 0, list[Tensor]()
        for _, _, (n, _, r) in self.parts:
            found.append((first + torch.arange(n, dtype=torch.int64)).repeat(r))
            first += 32 * -(-n // 32)
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)

    def lines_of(self, residual: Layout, bucket: Layout) -> Tensor:
        """The table of the matrices' rows, for the kernels that look for rows of zeros."""
        found = self._tables.get((residual, bucket, "rows"))
        if found is None:
            at, rows = 0, list[list[int]]()
            for number, s, (n, m, _) in self.parts:
                rows.append([residual.position(s), bucket.position(s), n * m, at, 0, 0, m, number])
                at += 4 * -(-n // 32)
            found = self._tables[residual, bucket, "rows"] = self._table(rows)
        return found

    def _table(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64).view(-1, 8)

    def used(self, factor: str) -> Tensor | None:
        """Which elements of a factor's memory are columns in use; None: all."""
        if self._in_use:
            return None
        found = self._tables.get(factor)
        if found is None:
            at, spans = 0, list[Tensor]()
            for (_, _, (n, m, r)), room in zip(self.parts, self._room, strict=True):
                length = n if factor == "p" else m
                spans.append(torch.arange(at, at + r * length, dtype=torch.int64))
                at += room * length
            found = self._tables[factor] = torch.cat(spans).to(self.device)
        return found

    def exact(self, add: Layout) -> Tensor:
        """Rows of what travels exact, for the dense codec: from a bucket, or (as ``x``) into one."""
        found = self._tables.get(add)
        if found is None:
            at = [add.position(s) for _, s, _ in self._exact]
            rows = [[a, a, s.numel, byte, 0, 0, 0, n] for a, (n, s, byte) in zip(at, self._exact, strict=True)]
            found = self._tables[add] = self._table(rows)
        return found

    def matrices(self, residual: Layout, bucket: Layout | None) -> Tensor:
        """The table of the matrices that ``residual`` has, with their places in a bucket (or in none)."""
        found = self._tables.get((residual, bucket))
        if found is None:
            rows = [
                [residual.position(s), -1 if bucket is None else bucket.position(s), n, m, r, p, q, number]
                for (number, s, (n, m, r)), (p, q) in zip(self.parts, self._places, strict=True)
            ]
            found = self._tables[residual, bucket] = self._table([row for row in rows if row[0] >= 0])
        return found


factor_layout = lru_cache(maxsize=4096)(FactorLayout)
