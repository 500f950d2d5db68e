"""Two means in blocks that are small, large and odd."""

from __future__ import annotations

from compcomm.ops.reference.two_means import section
from tests.ops.formats import Coded


def _form(block: int) -> Coded:
    return Coded(
        "two_means",
        str(block),
        lambda numel: section(numel, block),
        lambda gain, step, rank: (block,),
        lambda: (block,),
        block,
    )


FORMATS = [_form(block) for block in (16, 48, 512, 2048)]
