"""Natural compression: exponents and signs."""

from __future__ import annotations

from tests.ops.formats import Coded

FORMATS = [
    Coded(
        "natural",
        "9 bits",
        lambda numel: -(-(numel + -(-numel // 8)) // 4) * 4,
        lambda gain, step, rank: (gain, step, rank),
        lambda: (),
        stochastic=True,
    ),
]
