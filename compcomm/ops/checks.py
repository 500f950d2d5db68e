"""Argument checks of the ops: one cheap expression when all is well, a full explanation when it is not."""

from __future__ import annotations

import torch
from torch import Tensor

F32, U8, I64 = torch.float32, torch.uint8, torch.int64
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""What gradients, residuals and means may be; kernels for CPUs see fp32 copies of the others."""


def encode(
    op: str, x: Tensor | None, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, *_: object
) -> None:
    """The leading arguments of every encode op."""
    if not (
        (x is None or (x.dtype in FLOATS and x.dim() == 1 and x.is_contiguous()))
        and (add is None or (add.dtype in FLOATS and add.dim() == 1 and add.is_contiguous()))
        and (wire.dtype is U8 and wire.dim() == 1 and wire.is_contiguous())
        and (table.dtype is I64 and table.dim() == 2 and table.shape[1] == 8 and table.is_contiguous())
        and (status.dtype is U8 and status.dim() == 1 and status.is_contiguous())
    ):
        flat(op, "x", x, *FLOATS)
        flat(op, "add", add, *FLOATS)
        flat(op, "wire", wire, U8)
        flat(op, "status", status, U8)
        table_of(op, table)


def decode(op: str, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, *_: object) -> None:
    """The leading arguments of every decode op."""
    if not (
        (wires.dtype is U8 and wires.dim() == 2 and wires.stride(1) == 1 and wires.shape[0] > 0)
        and (table.dtype is I64 and table.dim() == 2 and table.shape[1] == 8 and table.is_contiguous())
        and (skip.dtype is U8 and skip.dim() == 1 and skip.is_contiguous())
        and (out.dtype in FLOATS and out.dim() == 1 and out.is_contiguous())
    ):
        if wires.dtype is not U8:
            raise TypeError(f"compcomm.{op}: wires is {wires.dtype}; messages are bytes, pass a torch.uint8 tensor")
        if wires.dim() != 2 or wires.shape[0] == 0:
            raise ValueError(
                f"compcomm.{op}: wires has shape {tuple(wires.shape)}; it must be [messages, bytes] with at least one "
                "message. Use wire.unsqueeze(0) for one."
            )
        if wires.shape[1] > 1 and wires.stride(1) != 1:
            raise ValueError(f"compcomm.{op}: the bytes of a message must be adjacent; call wires.contiguous()")
        flat(op, "skip", skip, U8)
        flat(op, "out", out, *FLOATS)
        table_of(op, table)


NOTHING = torch.empty(0, dtype=torch.uint8)
NO_FLOATS = torch.empty(0, dtype=torch.float32)
"""In place of arguments that an op does not have."""


def flats(op: str, *named: tuple[str, Tensor | None, torch.dtype]) -> None:
    """One-dimensional contiguous tensors, each of its type, or an error as of ``flat``."""
    for name, tensor, dtype in named:
        if tensor is not None and not (tensor.dtype is dtype and tensor.dim() == 1 and tensor.is_contiguous()):
            flat(op, name, tensor, dtype)


def with_gain(
    op: str, x: Tensor | None, add: Tensor | None, wire: Tensor, table: Tensor, status: Tensor, decay: float,
    add_scale: float, gain: Tensor, *_: object,
) -> None:  # fmt: skip
    """The leading arguments of every encode op, and a float for every row."""
    encode(op, x, add, wire, table, status)
    if not (gain.dtype is F32 and gain.dim() == 1 and gain.shape[0] == table.shape[0] and gain.is_contiguous()):
        flat(op, "gain", gain, F32, numel=table.shape[0])


def flat(op: str, name: str, tensor: Tensor | None, *dtypes: torch.dtype, numel: int | None = None) -> None:
    """A one-dimensional contiguous tensor of one of these types (and that length), or an error that says what to do."""
    if tensor is None:
        return
    if tensor.dtype not in dtypes:
        due = " or ".join(map(str, dtypes))
        raise TypeError(f"compcomm.{op}: {name} is {tensor.dtype}, but must be {due}; call .to({dtypes[0]})")
    if tensor.dim() != 1 or not tensor.is_contiguous():
        raise ValueError(
            f"compcomm.{op}: {name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}, but must be flat "
            "and contiguous; pass the bucket's flat tensor or .contiguous().view(-1)"
        )
    if numel is not None and tensor.numel() != numel:
        raise ValueError(f"compcomm.{op}: {name} has {tensor.numel()} elements, but needs {numel}: one per table row")


def table_of(op: str, table: Tensor) -> None:
    if table.dtype is not I64 or table.dim() != 2 or table.shape[1] != 8 or not table.is_contiguous():
        raise ValueError(
            f"compcomm.{op}: table is {table.dtype} of shape {tuple(table.shape)}; it must be contiguous torch.int64 "
            "[rows, 8]: x, add, numel, wire, offset, key, k, index"
        )


def qsgd(op: str, bits: int, levels: int, block: int) -> None:
    """The parameters of the QSGD format."""
    if not 2 <= bits <= 8:
        raise ValueError(f"compcomm.{op}: bits={bits}; codes have 2 to 8 bits")
    if levels < 1 or 2 * levels >= 1 << bits:
        raise ValueError(
            f"compcomm.{op}: levels={levels} needs codes 0..{2 * levels}, which do not fit {bits} bits; "
            f"use levels <= {2 ** (bits - 1) - 1} or more bits"
        )
    if block <= 0 or block % 16:
        blocks(op, block)


def blocks(op: str, block: int) -> None:
    """Blocks are whole vectors of 16 lanes, so that a block's codes begin at a byte."""
    if block <= 0 or block % 16:
        raise ValueError(f"compcomm.{op}: block={block} must be a positive multiple of 16")
