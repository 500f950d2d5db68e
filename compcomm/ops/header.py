"""The ops of message headers, for devices that the host does not wait for: ``header_write``, ``header_read`` and, where
ranks sum their headers, ``sums_read``."""

from __future__ import annotations

from torch import Tensor

from . import checks
from .reference.header import header_read, header_write, size, sums_read
from .schema import register


def _check_write(op: str, wire: Tensor, status: Tensor, places: Tensor, *_: int) -> None:
    checks.flat(op, "wire", wire, checks.U8)
    checks.flat(op, "status", status, checks.U8)
    _lines(op, "places", places, 2)


def _check_read(op: str, wires: Tensor, outcome: Tensor, fault: Tensor, lengths: Tensor, *_: int) -> None:
    checks.flat(op, "outcome", outcome, checks.U8)
    checks.flat(op, "fault", fault, checks.I64, numel=1)
    if wires.dtype is not checks.U8 or wires.dim() != 2 or wires.shape[1] < size(outcome.numel() - 1):
        raise ValueError(
            f"compcomm.{op}: wires is {wires.dtype} of shape {tuple(wires.shape)}; messages are bytes, [ranks, bytes], "
            f"of at least the {size(outcome.numel() - 1)} that a header has"
        )
    if lengths.dtype is not checks.I64 or lengths.shape != wires.shape[:1]:
        raise ValueError(f"compcomm.{op}: lengths is {tuple(lengths.shape)}; one int64 for each of {len(wires)} ranks")


def _check_sums(op: str, sums: Tensor, outcome: Tensor, fault: Tensor, due: float) -> None:
    checks.flat(op, "outcome", outcome, checks.U8)
    checks.flat(op, "fault", fault, checks.I64, numel=1)
    checks.flat(op, "sums", sums, checks.F32, numel=1 + outcome.numel())


def _lines(op: str, name: str, tensor: Tensor, width: int) -> None:
    if tensor.dtype is not checks.I64 or tensor.dim() != 2 or tensor.shape[1] != width:
        raise ValueError(f"compcomm.{op}: {name} has shape {tuple(tensor.shape)}; it must be int64 [messages, {width}]")


register(
    "header_write(Tensor(a!) wire, Tensor status, Tensor places, int flags, int rank, int step, int bucket) -> ()",
    header_write,
    check=_check_write,
)
register(
    "header_read(Tensor wires, Tensor(a!) outcome, Tensor(b!) fault, Tensor lengths, int step, int bucket) -> ()",
    header_read,
    check=_check_read,
)
register("sums_read(Tensor sums, Tensor(a!) outcome, Tensor(b!) fault, float due) -> ()", sums_read, check=_check_sums)
