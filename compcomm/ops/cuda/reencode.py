"""The owner's step in one kernel: the messages' mean stays in registers. Kernels: ``csrc/cuda/{sign,qsgd}.cu``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import work
from ..reference import qsgd, sign
from .dense import encode_tile
from .library import FLOAT, INT, LONG, POINTER, Function, kernel, typed

RECODE = (
    POINTER, INT, POINTER, LONG, LONG, POINTER, POINTER, POINTER, POINTER, POINTER, LONG, POINTER, FLOAT, FLOAT,
)  # fmt: skip
_sign = Function("cc_cuda_sign_reencode", *RECODE, INT, LONG)
_qsgd = Function("cc_cuda_qsgd_reencode", *RECODE, POINTER, INT, INT, INT, INT, LONG, LONG, LONG)


def _check(op: str, x, wires, table_in, skip, wire, table_out, status, section, *form) -> None:
    """As the encoder and the decoder check their rows; only numel is asked of what is not there."""

    def check() -> None:
        numel = int(table_out[:, 2].sum())
        decoded = table_in.cpu().clone()
        decoded[:, 0] = 0
        nothing = torch.empty(numel, dtype=torch.float32, device="meta")
        work.check_decode(op, wires, decoded, skip, nothing, section, *form)
        if x is None:
            encoded = table_out.cpu().clone()
            encoded[:, 0] = 0
            work.check_encode(op, nothing, None, wire, encoded, status, section, *form)

    sizes = wires.shape[1], skip.numel(), wire.numel(), status.numel(), x is None
    work.kept(table_out, (op, id(table_in), *sizes, *form), check)
    if x is not None:
        work.check_encode(op, x, None, wire, table_out, status, section, *form)


def _reencode(f: Function, tile: int, x: Any, wires: Tensor, table_in: Tensor, skip: Tensor, wire: Tensor, *rest: Any):
    table_out, status, *others = rest
    w = work.tiles(table_out, tile, wire.device)
    f(
        wire, *typed(x), wires.data_ptr(), wires.shape[0], wires.stride(0), work.on(table_in, wire.device).data_ptr(),
        skip.data_ptr(), wire.data_ptr(), w.table.data_ptr(), w.tiles.data_ptr(), w.programs, status.data_ptr(),
        *others,
    )  # fmt: skip


@kernel("sign_reencode")
def sign_reencode(x, wires, table_in, skip, wire, table_out, status, scale, add_scale, kind, block):
    def section(row):
        return sign.section(row.numel, block)

    _check("sign_reencode", x, wires, table_in, skip, wire, table_out, status, section, block)
    _reencode(
        _sign, encode_tile(block), x, wires, table_in, skip, wire, table_out, status, scale, add_scale, kind, block
    )


@kernel("qsgd_reencode")
def qsgd_reencode(
    x, wires, table_in, skip, wire, table_out, status, scale, add_scale, gain, bits, levels, norm2, stochastic, block,
    step, rank,
):  # fmt: skip
    def section(row):
        return qsgd.section(row.numel, bits, block)

    _check("qsgd_reencode", x, wires, table_in, skip, wire, table_out, status, section, bits, block)
    gain = work.on(gain, wire.device)
    form = gain.data_ptr(), bits, levels, norm2, stochastic, block, step, rank
    _reencode(_qsgd, encode_tile(block), x, wires, table_in, skip, wire, table_out, status, scale, add_scale, *form)
