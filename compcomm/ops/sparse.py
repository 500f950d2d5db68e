"""The ops whose payload holds k elements per row: top-k and rand-k, encode and decode.

Their formulas and wire layouts are in ``reference/topk.py`` and ``reference/randk.py``; here each op gets its schema,
its checks and its C function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import checks, native
from .dense import INPUT, OUTPUT
from .native import LONG, POINTER
from .reference.randk import randk_decode, randk_encode, randk_indices
from .reference.sampled import topk_sampled_encode
from .reference.topk import corrupt, topk_decode, topk_encode, topk_some_encode, topk_zero
from .schema import current_backend, register


def _check_topk_encode(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    if args[7] is not None:
        checks.flat(op, "hint", args[7], checks.F32, numel=args[3].shape[0])


def _check_topk_some_encode(op: str, *args: Any) -> None:
    checks.encode(op, *args[:5])
    checks.flat(op, "counts", args[7], checks.I64, numel=args[3].shape[0])
    checks.flat(op, "bounds", args[8], checks.F32, numel=args[3].shape[0])


def _check_own(op: str, wires: Tensor, table: Tensor, out: Tensor) -> None:
    checks.decode(op, wires, table, checks.NOTHING, out)
    if wires.shape[0] != 1:
        raise ValueError(f"compcomm.{op}: wires has {wires.shape[0]} messages; pass your own one, wire.unsqueeze(0)")


def _with_own(name: str) -> Callable[..., int] | None:
    """An op on one's own message and a dense tensor."""
    f = native.function(f"cc_{name}", POINTER, LONG, POINTER, LONG, POINTER, LONG)
    if f is None:
        return None

    def call(wires: Tensor, table: Tensor, out: Tensor) -> int:
        return f(wires.data_ptr(), wires.shape[1], table.data_ptr(), table.shape[0], out.data_ptr(), out.numel())

    return call


_draw = native.function("cc_randk_indices", POINTER, LONG, POINTER)


def _randk_indices(key: int, numel: int, k: int, offset: int, step: int) -> Tensor:
    """No tensor argument says where to run, so this op chooses its backend itself."""
    if _draw is None or current_backend() != "native" or not 0 <= k <= numel <= 1 << 40:
        return randk_indices(key, numel, k, offset, step)
    row, out = torch.tensor([0, -1, numel, 0, offset, key, k, 0], dtype=torch.int64), torch.empty(k, dtype=torch.int64)
    _draw(row.data_ptr(), step, out.data_ptr())
    return out


def _fake_indices(key: int, numel: int, k: int, offset: int, step: int) -> Tensor:
    return torch.empty(k, dtype=torch.int64)


register(
    f"topk_encode({INPUT}, Tensor(d!)? hint) -> ()",
    topk_encode,
    native.encodes("topk_encode", tensors=1),
    _check_topk_encode,
)
register(
    f"topk_some_encode({INPUT}, Tensor counts, Tensor bounds) -> ()",
    topk_some_encode,
    native.encodes("topk_some_encode", tensors=2),
    _check_topk_some_encode,
)
register(
    f"topk_sampled_encode({INPUT}, int step, int rank) -> ()",
    topk_sampled_encode,
    native.encodes("topk_sampled_encode", LONG, LONG),
    checks.encode,
)
register(f"topk_decode({OUTPUT}) -> ()", topk_decode, native.decodes("topk_decode"), checks.decode, corrupt=corrupt)
register("topk_zero(Tensor wires, Tensor table, Tensor(a!) out) -> ()", topk_zero, _with_own("topk_zero"), _check_own)
register(
    f"randk_encode({INPUT}, Tensor gain, int step) -> ()",
    randk_encode,
    native.encodes("randk_encode", LONG, tensors=1),
    checks.with_gain,
)
register(f"randk_decode({OUTPUT}, int step) -> ()", randk_decode, native.decodes("randk_decode", LONG), checks.decode)
register(
    "randk_indices(int key, int numel, int k, int offset, int step) -> Tensor",
    _randk_indices,
    fake=_fake_indices,
)
