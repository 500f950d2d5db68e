"""Eight-bit floating point under a scale per block."""

from __future__ import annotations

from tests.ops.formats import Coded


def _float8(e5m2: bool, block: int = 512) -> Coded:
    return Coded(
        "float8",
        f"{'E5M2' if e5m2 else 'E4M3'}, blocks of {block}",
        lambda numel: 4 * -(-numel // block) + -(-numel // 4) * 4,
        lambda gain, step, rank: (e5m2, block),
        lambda: (e5m2, block),
        block,
    )


FORMATS = [_float8(False), _float8(True), _float8(False, 16), _float8(True, 2048), _float8(False, 48)]
