"""Codebook quantisers: one case per width, on both scales, in blocks around the tile and the vector."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from compcomm.compressors.gaussian import as_tensor, lloyd_max, uniform
from compcomm.ops.reference.codebook import section

from . import Coded


def coded(bits: int, part: int = 0, dot: bool = False, block: int = 512, grid: bool = False) -> Coded:
    half = uniform if grid else lloyd_max
    halves = [half(b) for b in (bits, bits + 1)[: 1 + (part > 0)] if b]

    def encode_tail(gain: Tensor, step: int, rank: int) -> tuple[object, ...]:
        return (as_tensor(*halves), bits, part, dot, block, step)

    def decode_tail(step: int = 3) -> tuple[object, ...]:
        return (as_tensor(*halves), bits, part, block, step)

    label = f"{'grid ' * grid}{bits}+{part}/65536 {'dot' if dot else 'mse'} block {block}"
    return Coded(
        "codebook", label, partial(section, bits=bits, part=part, block=block), encode_tail, decode_tail, block
    )


FORMATS = [
    *(coded(bits) for bits in range(1, 9)),
    *(coded(bits, 20000, block=64) for bits in range(8)),
    *(coded(bits, dot=True, block=block) for bits, block in ((1, 16), (3, 4096), (4, 512))),
    *(coded(bits, grid=True) for bits in (1, 4, 8)),
    *(
        coded(bits, part, block=block)
        for bits, part, block in ((0, 1, 16), (0, 65535, 2048), (2, 32768, 4096), (3, 7, 48))
    ),
]
