"""What a launch needs besides the caller's tensors: the table on the device, and which program treats which tile.

Both follow from the table alone, so they are made once per table and kept on it. A table lies on the host, where rows
are checked against the tensors, once per combination of sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from .reference.rows import Row, check_decode_rows, check_encode_rows

T = TypeVar("T")


class Work(NamedTuple):
    """A launch: ``table`` (int64 [rows, 8]) and ``tiles`` (int32 [programs, 2]: row, tile of the row) on the device."""

    table: Tensor
    tiles: Tensor
    programs: int


def kept(tensor: Tensor, key: Hashable, make: Callable[[], T]) -> T:
    """``make()``, once for this tensor and key: it lives as long as the tensor, and until that is written to."""
    found: dict[Hashable, Any] = getattr(tensor, "_compcomm", {})
    version = 0 if tensor.is_inference() else tensor._version
    if not found or found[None] != version:
        found = {None: version}
        tensor._compcomm = found  # pyright: ignore[reportAttributeAccessIssue]
    if key not in found:
        found[key] = make()
    return found[key]


def on(tensor: Tensor, device: torch.device) -> Tensor:
    """A constant of the caller's (a table, a gain per row, levels) on the device; copied once."""
    if tensor.device == device:
        return tensor
    return kept(tensor, device, lambda: tensor.to(device, non_blocking=True))


def tiles(table: Tensor, tile: int, device: torch.device, *, decoding: bool = False, column: int = 2) -> Work:
    """A program for every ``tile`` elements of every row (``column``: what counts a row's elements).

    Empty rows have none, nor have rows that ``out`` lacks (x = -1) where it is ``decoding``.
    """

    def make() -> Work:
        lines = table.cpu().numpy()
        numel = lines[:, column].copy()
        if decoding:
            numel[lines[:, 0] == -1] = 0
        counts = -(-numel // tile)
        rows = np.repeat(np.arange(len(lines)), counts)
        ends = np.cumsum(counts)
        inside = np.arange(len(rows)) - (ends - counts)[rows]
        if len(rows) >= 2**31 or (len(inside) and inside.max() >= 2**31):
            raise ValueError(f"compcomm: {len(rows)} tiles of {tile} elements; a launch has fewer than 2^31")
        made = torch.from_numpy(np.stack((rows, inside), 1).astype(np.int32)).contiguous()
        return Work(on(table, device), made.to(device, non_blocking=True), len(rows))

    return kept(table, ("tiles", tile, decoding, column, device), make)


def _size(tensor: Tensor | None) -> int:
    return -1 if tensor is None else tensor.numel()


def check_encode(
    op: str, x: Tensor | None, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor,
    section: Callable[[Row], int], *form: Hashable,
) -> None:  # fmt: skip
    """The reference's check of the rows, once per sizes and format (what ``section`` depends on)."""
    key = (op, _size(x), _size(add), wire.numel(), status.numel(), *form)
    kept(table, key, lambda: check_encode_rows(op, x, add, wire, table.cpu(), status, section))


def check_decode(
    op: str, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, section: Callable[[Row], int], *form: Hashable
) -> None:
    """The same for what is decoded."""
    key = (op, wires.shape[1], skip.numel(), out.numel(), *form)
    kept(table, key, lambda: check_decode_rows(op, wires, table.cpu(), skip, out, section))


def aligned(table: Tensor, multiple: int) -> bool:
    """Whether every row begins at a multiple of so many elements of its parameter (column ``offset``)."""
    return kept(table, ("aligned", multiple), lambda: not bool((table[:, 4] % multiple).any()))


def words(*tensors: Tensor) -> bool:
    """Whether these byte buffers begin at multiples of four, and messages are multiples of four bytes apart, so that
    sections can be read and written as words."""
    return all(t.data_ptr() % 4 == 0 and (t.dim() < 2 or t.shape[0] == 1 or t.stride(0) % 4 == 0) for t in tensors)
