"""Recode: what the owner of some blocks does between the two rounds of two-phase, as one op.

    mean = scale * (v_0 + v_1 + ...)        decoded from the messages; zero where a row is skipped
    y = x + add_scale * mean                x: the owner's residual; without one, y = add_scale * mean
    wire <- code(y),  x <- y - value

By definition it is the format's decoder into a scratch mean and then its encoder, which is how it is done here, on
whatever kernels those two have. The rows of ``table_in`` (places in the messages, ``skip``) and of ``table_out``
(places in x and the wire, status) are the same ones: equal in number and in ``numel``, one to one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..scratch import scratch
from ..work import kept

OPS = torch.ops.compcomm


def check_rows(op: str, table_in: Tensor, table_out: Tensor) -> None:
    """ValueError unless both tables have the same rows; looked at once per pair of tables."""
    version = 0 if table_in.is_inference() else table_in._version
    kept(table_out, ("reencode", id(table_in), version), lambda: _compare(op, table_in, table_out))


def _compare(op: str, table_in: Tensor, table_out: Tensor) -> Tensor:
    if table_in.shape != table_out.shape or not torch.equal(table_in[:, 2].cpu(), table_out[:, 2].cpu()):
        raise ValueError(
            f"compcomm.{op}: table_in and table_out must have the same rows, with the same numel (column 2); they have "
            f"{len(table_in)} and {len(table_out)}. Make both from the blocks that this rank owns."
        )
    return table_in  # kept alive: its id is the key


def _with_mean(table: Tensor, *columns: int) -> Tensor:
    """The table with the rows' places in the mean, one after the other, in these columns."""

    def make() -> Tensor:
        placed = table.clone()
        for column in columns:
            placed[:, column] = table[:, 2].cumsum(0) - table[:, 2]
        return placed

    return kept(table, ("mean", columns), make)


def reencode(
    name: str, x: Tensor | None, wires: Tensor, table_in: Tensor, skip: Tensor, wire: Tensor, table_out: Tensor,
    status: Tensor, scale: float, add_scale: float, decode_tail: tuple[Any, ...], encode_tail: tuple[Any, ...],
) -> None:  # fmt: skip
    """``<name>_decode`` and ``<name>_encode`` around a scratch mean."""
    check_rows(f"{name}_reencode", table_in, table_out)
    numel = int(kept(table_in, "numel", lambda: int(table_in[:, 2].sum())))
    mean = scratch("reencode", numel, torch.float32, wire.device)
    decode, encode = getattr(OPS, f"{name}_decode"), getattr(OPS, f"{name}_encode")
    decode(wires, _with_mean(table_in, 0), skip, mean, scale, False, *decode_tail)
    if x is None:
        encode(mean, None, wire, _with_mean(table_out, 0), status, add_scale, 1.0, *encode_tail)
    else:
        encode(x, mean, wire, _with_mean(table_out, 1), status, 1.0, add_scale, *encode_tail)


def sign_reencode(
    x: Tensor | None, wires: Tensor, table_in: Tensor, skip: Tensor, wire: Tensor, table_out: Tensor, status: Tensor,
    scale: float, add_scale: float, kind: int, block: int,
) -> None:  # fmt: skip
    """``wire <- sign(y)``, ``x <- y - value``."""
    tails = (block,), (kind, block)
    reencode("sign", x, wires, table_in, skip, wire, table_out, status, scale, add_scale, *tails)


def qsgd_reencode(
    x: Tensor | None, wires: Tensor, table_in: Tensor, skip: Tensor, wire: Tensor, table_out: Tensor, status: Tensor,
    scale: float, add_scale: float, gain: Tensor, bits: int, levels: int, norm2: bool, stochastic: bool, block: int,
    step: int, rank: int,
) -> None:  # fmt: skip
    """``wire <- qsgd(y)``, ``x <- y - value``."""
    tails = (bits, levels, block), (gain, bits, levels, norm2, stochastic, block, step, rank)
    reencode("qsgd", x, wires, table_in, skip, wire, table_out, status, scale, add_scale, *tails)
