"""Natural compression (exponents and signs) and natural dithering (steps and codes)."""

from __future__ import annotations

from tests.ops.formats import Coded


def _dithering(bits: int, norm2: bool = False, block: int = 512) -> Coded:
    return Coded(
        "natural_dither",
        f"{bits} bits, {'L2' if norm2 else 'max'} norm, blocks of {block}",
        lambda numel: 4 * -(-numel // block) + -(-numel * bits // 32) * 4,
        lambda gain, step, rank: (gain, bits, norm2, block, step, rank),
        lambda: (bits, block),
        block,
        stochastic=True,
    )


FORMATS = [
    Coded(
        "natural",
        "9 bits",
        lambda numel: -(-(numel + -(-numel // 8)) // 4) * 4,
        lambda gain, step, rank: (gain, step, rank),
        lambda: (),
        stochastic=True,
    ),
    *(_dithering(bits, norm2) for bits in range(2, 9) for norm2 in (False, True)),
    _dithering(3, block=16),
    _dithering(5, block=48),
    _dithering(4, block=2048),
]
