"""Signs under the scale that keeps the inner product (the other two are listed in ``dense_case``)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from compcomm.ops.reference.sign import section

from . import Coded


def _dot(block: int) -> Coded:
    def encode_tail(gain: Tensor, step: int, rank: int) -> tuple[object, ...]:
        return (2, block)

    return Coded("sign", f"dot {block}", partial(section, block=block), encode_tail, lambda: (block,), block)


FORMATS = [_dot(512), _dot(16)]
