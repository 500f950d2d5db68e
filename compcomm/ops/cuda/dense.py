"""Sign and qsgd: a scale per block and a code per element. Kernels: ``csrc/cuda/{sign,qsgd}.cu``."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from .. import work
from ..reference import qsgd, sign
from .library import FLOAT, INT, LONG, POINTER, Function, kernel, number, typed

ENCODE = (POINTER, INT, POINTER, INT, POINTER, POINTER, POINTER, LONG, POINTER, FLOAT, FLOAT)
DECODE = (POINTER, LONG, LONG, POINTER, POINTER, LONG, POINTER, POINTER, INT, FLOAT, INT)

_sign_encode = Function("cc_cuda_sign_encode", *ENCODE, INT, LONG)
_sign_decode = Function("cc_cuda_sign_decode", *DECODE, LONG)
_qsgd_encode = Function("cc_cuda_qsgd_encode", *ENCODE, POINTER, INT, INT, INT, INT, LONG, LONG, LONG)
_qsgd_decode = Function("cc_cuda_qsgd_decode", *DECODE, INT, INT, LONG)


@cache
def encode_tile(block: int) -> int:
    """Elements to a program of encoders in such blocks."""
    return number("cc_cuda_encode_tile", block)


@cache
def decode_tile() -> int:
    """Elements to a program of decoders."""
    return number("cc_cuda_decode_tile")


def _encode(f: Function, tile: int, x: Tensor, add: Any, wire: Tensor, table: Tensor, status: Tensor, *rest: Any):
    w = work.tiles(table, tile, wire.device)
    places = wire.data_ptr(), w.table.data_ptr(), w.tiles.data_ptr(), w.programs, status.data_ptr()
    f(wire, *typed(x), *typed(add), *places, *rest)


def _decode(f: Function, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, *rest: Any):
    w = work.tiles(table, decode_tile(), out.device, decoding=True)
    messages = wires.data_ptr(), wires.shape[0], wires.stride(0)
    f(out, *messages, w.table.data_ptr(), w.tiles.data_ptr(), w.programs, skip.data_ptr(), *typed(out), *rest)


@kernel("sign_encode")
def sign_encode(x, add, wire, table, status, decay, add_scale, kind, block):
    work.check_encode("sign_encode", x, add, wire, table, status, lambda row: sign.section(row.numel, block), block)
    _encode(_sign_encode, encode_tile(block), x, add, wire, table, status, decay, add_scale, kind, block)


@kernel("sign_decode")
def sign_decode(wires, table, skip, out, scale, accumulate, block):
    work.check_decode("sign_decode", wires, table, skip, out, lambda row: sign.section(row.numel, block), block)
    _decode(_sign_decode, wires, table, skip, out, scale, accumulate, block)


@kernel("qsgd_encode")
def qsgd_encode(
    x, add, wire, table, status, decay, add_scale, gain, bits, levels, norm2, stochastic, block, step, rank
):  # fmt: skip
    def section(row):
        return qsgd.section(row.numel, bits, block)

    work.check_encode("qsgd_encode", x, add, wire, table, status, section, bits, block)
    gain = work.on(gain, wire.device)
    form = gain.data_ptr(), bits, levels, norm2, stochastic, block, step, rank
    _encode(_qsgd_encode, encode_tile(block), x, add, wire, table, status, decay, add_scale, *form)


@kernel("qsgd_decode")
def qsgd_decode(wires, table, skip, out, scale, accumulate, bits, levels, block):
    def section(row):
        return qsgd.section(row.numel, bits, block)

    work.check_decode("qsgd_decode", wires, table, skip, out, section, bits, block)
    _decode(_qsgd_decode, wires, table, skip, out, scale, accumulate, bits, levels, block)
