"""MinMax with every number of bits, both roundings, and blocks that are small, large and odd."""

from __future__ import annotations

from compcomm.ops.reference.minmax import section
from tests.ops.formats import Coded


def _form(bits: int, stochastic: bool, block: int = 512) -> Coded:
    return Coded(
        "minmax",
        f"{bits} bits {'random' if stochastic else 'nearest'} {block}",
        lambda numel: section(numel, bits, block),
        lambda gain, step, rank: (gain, bits, stochastic, block, step, rank),
        lambda: (bits, block),
        block,
        stochastic,
    )


FORMATS = [
    *(_form(bits, stochastic) for bits in range(1, 9) for stochastic in (False, True)),
    _form(4, True, 16),
    _form(1, True, 48),
    _form(7, True, 1040),
    _form(3, False, 2048),
]
