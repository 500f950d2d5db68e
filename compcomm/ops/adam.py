"""Ops of optimizers with flat state: ``adam``, ``momentum``, ``descend``. Their meaning: ``reference/adam.py``."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import checks, native
from .native import FLOAT, LONG, POINTER
from .reference.adam import DTYPES, adam, descend, given, momentum, pieces
from .schema import register

Tensors = Sequence[Tensor]
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # of a piece's types
_NONE, _OTHER, _FIELDS = 3, 16, 5  # not there; beyond all codes; words of a piece
UNREAD = dict.fromkeys(DTYPES, _NONE)


def _moments(op: str, lists: dict[str, int], first: Tensor, name: str, second: Tensor) -> None:
    """Lists of one length, and two flat vectors of one length."""
    if len(set(lists.values())) > 1:
        raise ValueError(
            f"compcomm.{op}: {', '.join(f'{n} has {k}' for n, k in lists.items())} entries; each parameter needs one"
        )
    checks.flat(op, "mean", first, checks.F32)
    checks.flat(op, name, second, checks.F32)
    if second.numel() != first.numel():
        raise ValueError(f"compcomm.{op}: {name} has {second.numel()} elements, but mean has {first.numel()}")


def _check_adam(
    op: str, params: Tensors, grads: Tensors, starts: Sequence[int], mean: Tensor, square: Tensor, *_: Any
) -> None:
    lists = {"params": len(params), "grads": len(grads), "starts": len(starts)}
    _moments(op, lists, mean, "square", square)


def _check_momentum(
    op: str, grads: Tensors, params: Tensors, starts: Sequence[int], mean: Tensor, out: Tensor, *rest: Any
) -> None:
    lists = {"grads": len(grads), "params": len(params), "starts": len(starts)}
    _moments(op, lists, mean, "out", out)
    status = rest[-1]
    checks.flat(op, "status", status, checks.U8)
    if status.numel() != 1:
        raise ValueError(f"compcomm.{op}: status has {status.numel()} elements, but needs 1")


def _check_descend(op: str, params: Tensors, starts: Sequence[int], mean: Tensor, denominator: Tensor, *_: Any) -> None:
    _moments(op, {"params": len(params), "starts": len(starts)}, mean, "denominator", denominator)


_LEADING = (POINTER, LONG, POINTER, POINTER, LONG)
_adam = native.function("cc_adam", *_LEADING, *[FLOAT] * 10)
_momentum = native.function("cc_momentum", *_LEADING, *[FLOAT] * 4, POINTER)
_descend = native.function("cc_descend", *_LEADING, FLOAT, FLOAT)

# What is contiguous and of a dtype that the kernels know becomes words of the list of pieces (cc_piece). What has other
# strides goes through contiguous copies; the rest is given back, for the reference. These loops are most of what a step
# costs in Python: 0.6 us per parameter.


class Packed(NamedTuple):
    """``words``: of all pieces. ``others``: (parameter, gradient, start) for the reference. ``copies``: (parameter,
    its copy); ``kept``: copies of gradients, which must live as long as the words."""

    words: array[int]
    others: list[tuple[Tensor, Tensor, int]]
    copies: list[tuple[Tensor, Tensor]]
    kept: list[Tensor]

    def copy(self, p: Tensor) -> Tensor:
        """A parameter, or a contiguous copy that is put back in the end."""
        if p.is_contiguous():
            return p
        copy = p.detach().contiguous()
        self.copies.append((p, copy))
        return copy

    def lay(self, g: Tensor) -> Tensor:
        """A gradient, or a contiguous copy."""
        if g.is_contiguous():
            return g
        self.kept.append(g.contiguous())
        return self.kept[-1]

    def put_back(self) -> None:
        """Writes the parameters from their copies."""
        for p, copy in self.copies:
            p.detach().copy_(copy)


def pack(
    params: Tensors, grads: Tensors, starts: Sequence[int], known: dict[torch.dtype, int], optional: bool = False,
    copying: bool = False,
) -> Packed:  # fmt: skip
    """``known``: codes of the parameters' dtypes. ``optional``: a gradient of 0 elements counts as zeros. ``copying``:
    what has other strides is copied; else it is given back."""
    words, found = list[int](), Packed(array("q"), [], [], [])
    for p, g, start in zip(params, grads, starts, strict=True):
        kind = known.get(p.dtype, _OTHER) + 4 * CODES.get(g.dtype, _OTHER)
        if kind < _OTHER:
            if p.is_contiguous() and g.is_contiguous():
                if p.shape == g.shape:
                    words += (p.data_ptr(), g.data_ptr(), p.numel(), start, kind)
                    continue
                if optional and g.numel() == 0:
                    words += (p.data_ptr(), 0, p.numel(), start, known[p.dtype] + 4 * _NONE)
                    continue
            elif copying and p.layout is g.layout is torch.strided:
                missing = optional and g.numel() == 0
                if missing or p.shape == g.shape:
                    p = p if known is UNREAD else found.copy(p)
                    kind = known[p.dtype] + 4 * _NONE if missing else kind
                    words += (p.data_ptr(), found.lay(g).data_ptr(), p.numel(), start, kind)
                    continue
        found.others.append((p, g, start))
    return found._replace(words=array("q", words))


def pack_params(params: Tensors, starts: Sequence[int], copying: bool = False) -> Packed:
    """The same without gradients."""
    words, found = list[int](), Packed(array("q"), [], [], [])
    for p, start in zip(params, starts, strict=True):
        kind = CODES.get(p.dtype)
        if kind is None or not (p.is_contiguous() or (copying and p.layout is torch.strided)):
            found.others.append((p, p, start))
            continue
        p = found.copy(p)
        words += (p.data_ptr(), 0, p.numel(), start, kind)
    return found._replace(words=array("q", words))


def _leading(table: array[int], first: Tensor, second: Tensor) -> tuple[int, int, int, int, int]:
    """The leading arguments; the caller holds the table during the call."""
    return table.buffer_info()[0], len(table) // _FIELDS, first.data_ptr(), second.data_ptr(), first.numel()


def _fast_adam(
    params: Tensors, grads: Tensors, starts: Sequence[int], mean: Tensor, square: Tensor, beta1: float, beta2: float,
    scale: float, rate: float, correction: float, eps: float, decay: float, l2: float,
) -> int:  # fmt: skip
    assert _adam is not None
    packed = pack(params, grads, starts, CODES, copying=True)
    if packed.others:  # nothing is written unless all is right
        pieces("adam", params, grads, starts, mean.numel(), False)
    code = _adam(
        *_leading(packed.words, mean, square), beta1, 1.0 - beta1, beta2, 1.0 - beta2, scale, rate, correction,
        eps, decay, l2,
    )  # fmt: skip
    if code:
        return code
    packed.put_back()
    if packed.others:
        p, g, s = zip(*packed.others, strict=True)
        adam(p, g, s, mean, square, beta1, beta2, scale, rate, correction, eps, decay, l2)
    increment_version(params)
    return 0


def _fast_momentum(
    grads: Tensors, params: Tensors, starts: Sequence[int], mean: Tensor, out: Tensor, beta: float, scale: float,
    l2: float, status: Tensor,
) -> int:  # fmt: skip
    assert _momentum is not None
    packed = pack(params, grads, starts, CODES if given(l2) else UNREAD, True, True)
    if packed.others:
        pieces("momentum", params, grads, starts, mean.numel(), True)
    code = _momentum(*_leading(packed.words, mean, out), beta, 1.0 - beta, scale, l2, status.data_ptr())
    if packed.others and not code:
        p, g, s = zip(*packed.others, strict=True)
        momentum(g, p, s, mean, out, beta, scale, l2, status)
    return code


def _fast_descend(
    params: Tensors, starts: Sequence[int], mean: Tensor, denominator: Tensor, rate: float, decay: float
) -> int:
    assert _descend is not None
    packed = pack_params(params, starts, True)
    if packed.others:
        pieces("descend", params, params, starts, mean.numel(), False)
    code = _descend(*_leading(packed.words, mean, denominator), rate, decay)
    if code:
        return code
    packed.put_back()
    if packed.others:
        p, _, s = zip(*packed.others, strict=True)
        descend(p, s, mean, denominator, rate, decay)
    increment_version(params)
    return 0


register(
    "adam(Tensor(a!)[] params, Tensor[] grads, int[] starts, Tensor(b!) mean, Tensor(c!) square, float beta1, "
    "float beta2, float scale, float rate, float correction, float eps, float decay, float l2) -> ()",
    adam,
    None if _adam is None else _fast_adam,
    _check_adam,
)
register(
    "momentum(Tensor[] grads, Tensor[] params, int[] starts, Tensor mean, Tensor(a!) out, float beta, float scale, "
    "float l2, Tensor(b!) status) -> ()",
    momentum,
    None if _momentum is None else _fast_momentum,
    _check_momentum,
)
register(
    "descend(Tensor(a!)[] params, int[] starts, Tensor mean, Tensor denominator, float rate, float decay) -> ()",
    descend,
    None if _descend is None else _fast_descend,
    _check_descend,
)
