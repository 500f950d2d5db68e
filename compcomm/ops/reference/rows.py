"""What all reference ops share: the table, its check, the input rule, the decoding loop.

The table is int64 ``[rows, 8]``: (x, add, numel, wire, offset, key, k, index), one row per piece of a parameter.
``x``, ``add`` count elements of the flat tensors (-1: absent), ``wire`` counts bytes of the message, ``offset`` is the
row's place inside its parameter, ``index`` its place in ``status[1 + index]`` and ``skip[index]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor


class Row(NamedTuple):
    """One line of the table (``entry`` is its index: a tuple has a method of that name)."""

    x: int
    add: int
    numel: int
    wire: int
    offset: int
    key: int
    k: int
    entry: int


def rows(table: Tensor) -> list[Row]:
    """The table as named rows."""
    return [Row(*line) for line in cast("list[list[int]]", table.tolist())]


def _inside(start: int, count: int, total: int) -> bool:
    return start >= 0 and count >= 0 and start + count <= total


def check_encode_rows(
    op: str,
    x: Tensor | None,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    section: Callable[[Row], int],
) -> None:
    """Raise ValueError for the first row that does not fit its tensors; ``section``: bytes a row writes."""
    for r, row in enumerate(rows(table)):
        where = f"compcomm.{op}: table row {r} {tuple(row)}"
        if row.numel < 0 or row.numel > 1 << 40:
            raise ValueError(f"{where}: numel (column 2) is {row.numel}; it must lie in 0..2^40")
        if not _inside(row.wire, section(row), wire.numel()):
            raise ValueError(
                f"{where}: its section of {section(row)} bytes at byte {row.wire} ends outside the wire of "
                f"{wire.numel()} bytes. Allocate the wire from the same layout that made the table."
            )
        if x is not None and row.x >= 0 and not _inside(row.x, row.numel, x.numel()):
            raise ValueError(f"{where}: elements {row.x}..{row.x + row.numel} are outside x of {x.numel()} elements")
        if add is not None and row.add >= 0 and not _inside(row.add, row.numel, add.numel()):
            raise ValueError(f"{where}: elements {row.add}..{row.add + row.numel} are outside add of {add.numel()}")
        if (x is None or row.x < 0) and (op not in ("dense_encode", "permute_blocks") or add is None or row.add < 0):
            either = " or add (column 1)" if op == "dense_encode" else ""
            raise ValueError(f"{where}: it has no input; give x (column 0){either}")
        if not 0 <= row.entry < status.numel() - 1:
            raise ValueError(f"{where}: index (column 7) is {row.entry}, but status has 1 + {status.numel() - 1}")


def check_decode_rows(
    op: str, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, section: Callable[[Row], int]
) -> None:
    """Raise ValueError for the first row that does not fit its tensors; ``section``: bytes a row reads."""
    for r, row in enumerate(rows(table)):
        if row.x == -1:
            continue
        where = f"compcomm.{op}: table row {r} {tuple(row)}"
        if row.numel < 0 or row.numel > 1 << 40:
            raise ValueError(f"{where}: numel (column 2) is {row.numel}; it must lie in 0..2^40")
        if not _inside(row.wire, section(row), wires.shape[1]):
            raise ValueError(
                f"{where}: its section of {section(row)} bytes at byte {row.wire} ends outside messages of "
                f"{wires.shape[1]} bytes. Sender and receiver must use the same layout and configuration."
            )
        if not _inside(row.x, row.numel, out.numel()):
            raise ValueError(f"{where}: elements {row.x}..{row.x + row.numel} are outside out of {out.numel()}")
        if not 0 <= row.entry < skip.numel():
            raise ValueError(f"{where}: index (column 7) is {row.entry}, but skip has {skip.numel()} entries")


def load(x: Tensor | None, add: Tensor | None, row: Row, status: Tensor, decay: float, add_scale: float) -> Tensor:
    """``y = decay*x + add_scale*add`` of one row, without non-finite numbers; flags go to ``status``.

    Where ``y`` is not finite it becomes ``decay*x`` if that is finite and there was something to add, else 0: a bad
    gradient leaves the residual as it was.
    """
    own = None if x is None or row.x < 0 else x[row.x : row.x + row.numel] * decay
    if add is not None and row.add >= 0:
        gradient = add[row.add : row.add + row.numel]
        y = gradient * add_scale
        if own is None:
            fallback = torch.zeros_like(y)
        else:
            y = own + y
            fallback = torch.where(torch.isfinite(own), own, 0.0)
    else:
        assert x is not None and own is not None
        gradient, y, fallback = x[row.x : row.x + row.numel], own, torch.zeros_like(own)
    finite = torch.isfinite(y)
    flag(status, 0, ~finite)
    flag(status, 1 + row.entry, gradient != 0)
    return torch.where(finite, y, fallback)


def flag(status: Tensor, entry: int, condition: Tensor) -> None:
    """``status[entry] |= 1`` where any of the condition holds."""
    status[entry] |= condition.any().to(torch.uint8)


def put(wire: Tensor, start: int, *parts: Tensor) -> None:
    """Write tensors as bytes, one after the other, from byte ``start``; zero bytes up to a multiple of 4."""
    raw = torch.cat([p.contiguous().view(torch.uint8).reshape(-1) for p in parts])
    wire[start : start + raw.numel()] = raw
    wire[start + raw.numel() : start + pad4(raw.numel())] = 0


def take(message: Tensor, start: int, count: int, dtype: torch.dtype) -> Tensor:
    """``count`` numbers of ``dtype`` from byte ``start`` of a message."""
    return message[start : start + count * dtype.itemsize].clone().view(dtype)


def pad4(nbytes: int) -> int:
    """Bytes of a section part: a multiple of 4."""
    return (nbytes + 3) // 4 * 4


def ceil_div(a: int, b: int) -> int:
    """The quotient, rounded up."""
    return -(-a // b)


def blocks(y: Tensor, block: int) -> Tensor:
    """The row as ``[blocks, block]``, zeros after its end."""
    count = ceil_div(y.numel(), block)
    return torch.nn.functional.pad(y, (0, count * block - y.numel())).view(count, block)


def root(values: Tensor) -> Tensor:
    """The correctly rounded square root: torch's own fp32 root is off by one bit on some processors."""
    return torch.sqrt(values.to(torch.float64)).to(torch.float32)


def lane_sum(values: Tensor) -> Tensor:
    """Sums of ``[blocks, block]`` by the fixed tree: 16 lanes in order, then halved 8, 4, 2, 1 apart.

    Every backend adds in this order, so a scale has the same bits everywhere.
    """
    lanes = values.view(values.shape[0], -1, 16)
    total = torch.zeros_like(lanes[:, 0])
    for i in range(lanes.shape[1]):
        total = total + lanes[:, i]
    for half in (8, 4, 2, 1):
        total = total[:, :half] + total[:, half : 2 * half]
    return total[:, 0]


def encode(
    op: str, x: Tensor, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float, add_scale: float,
    section: Callable[[Row], int], code: Callable[[Tensor, Row, int], tuple[Tensor, ...]],
) -> None:  # fmt: skip
    """``code(y, row, number of the row)`` gives what a receiver will read, and the parts of the message; ``x`` keeps y
    less that."""
    check_encode_rows(op, x, add, wire, table, status, section)
    for r, row in enumerate(rows(table)):
        if row.numel:
            y = load(x, add, row, status, decay, add_scale)
            value, *parts = code(y, row, r)
            put(wire, row.wire, *parts)
            x[row.x : row.x + row.numel] = y - value


def decode(
    op: str, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool,
    section: Callable[[Row], int], values: Callable[[Tensor, Row], Tensor],
) -> None:  # fmt: skip
    """``r = (v_0 + v_1 + ...) * scale`` in message order; ``out = r`` or ``out + r``; skipped rows give zero."""
    check_decode_rows(op, wires, table, skip, out, section)
    skipped = cast("list[int]", skip.tolist())
    for row in rows(table):
        if row.x == -1 or row.numel == 0:
            continue
        target = out[row.x : row.x + row.numel]
        if skipped[row.entry]:
            if not accumulate:
                target.zero_()
            continue
        total = values(wires[0], row)
        for message in wires[1:]:
            total = total + values(message, row)
        result = total * scale
        target.copy_(target + result if accumulate else result)
