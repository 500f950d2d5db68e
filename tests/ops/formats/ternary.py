"""Ternary with and without clipping, in blocks that do and do not fit the groups of 80 digits."""

from __future__ import annotations

from compcomm.ops.reference.ternary import section
from tests.ops.formats import Coded


def _form(clip: float, block: int) -> Coded:
    return Coded(
        "ternary",
        f"clip {clip} {block}",
        lambda numel: section(numel, block),
        lambda gain, step, rank: (gain, clip, block, step, rank),
        lambda: (block,),
        block,
        stochastic=True,
    )


FORMATS = [_form(clip, block) for clip in (0.0, 2.1) for block in (16, 80, 512, 1040)]
