"""QSGD in Elias codes: configurations in which each of the forms occurs."""

from __future__ import annotations

from compcomm.ops.reference.elias import section

from . import Coded


def form(bits: int, levels: int, norm2: bool = False, stochastic: bool = False, block: int = 512) -> Coded:
    return Coded(
        "elias",
        f"{bits} bits, {levels} levels, {'L2' if norm2 else 'max'}, {'random' if stochastic else 'nearest'}, {block}",
        lambda numel: section(numel, bits, block),
        lambda gain, step, rank: (gain, bits, levels, norm2, stochastic, block, step, rank),
        lambda: (bits, levels, block),
        block,
        stochastic,
    )


FORMATS = [
    form(4, 7),
    form(4, 7, stochastic=True),
    form(6, 22, norm2=True, stochastic=True),
    form(2, 1, norm2=True, stochastic=True),
    form(8, 127, stochastic=True, block=48),
    form(8, 5, norm2=True, block=2048),
    form(3, 3, block=16),
    form(5, 15, stochastic=True, block=64),
]
