"""The configurations that stand for each family of compressors: a curve of bytes against error. A new export needs one.

``tests/launch/test_compressors_benchmark.py`` fails while an exported compressor is in none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import compcomm as cc

RATIOS = (0.001, 0.003, 0.01, 0.03, 0.1)
SHARES = (0.03, 0.1, 0.3, 0.6)  # of a sketch, which loses 1/share times |x|^2
BITS = (2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Family:
    """One curve: configurations from few bytes to many, of which ``speed`` (a position) is timed.

    ``kind``: how the plot colours it. ``goal``: encoding in multiples of memcpy that is asked for. ``learns``: steps
    that a selection takes to learn the data, before it is measured. ``limit``: the largest parameter, where larger
    ones take too long, and ``why``.
    """

    name: str
    kind: str
    texts: tuple[str, ...]
    speed: int | None = None
    goal: float | None = None
    learns: int = 0
    limit: int | None = None
    why: str = ""

    def compressors(self) -> list[cc.Compressor]:
        return [cc.parse(text) for text in self.texts]


def over(text: str, values: tuple[object, ...]) -> tuple[str, ...]:
    """The text with each value in the place of {}."""
    return tuple(text.format(value) for value in values)


FAMILIES = (
    Family("TopK", "sparse", over("TopK(ratio={})", RATIOS), 2),
    Family("TopK, sampled", "sparse", over("TopK(ratio={}, select='sampled')", RATIOS), 2, 2.0),
    Family("Threshold, exponential", "sparse", over("Threshold(ratio={})", RATIOS), 2, learns=30),
    Family("Threshold, Pareto", "sparse", over("Threshold(ratio={}, fit='pareto')", RATIOS), 2, learns=30),
    Family("Threshold, gamma", "sparse", over("Threshold(ratio={}, fit='gamma')", RATIOS), 2, learns=30),
    Family("RandK", "sparse", over("RandK(ratio={})", RATIOS), 2),
    Family("BlockTopK", "sparse", over("BlockTopK(ratio={})", RATIOS), 2),
    Family("BlockRandK", "sparse", over("BlockRandK(ratio={})", RATIOS), 2),
    Family("ChunkedTopK", "sparse", over("ChunkedTopK(k={})", (4, 16, 64, 256)), 2),
    Family("ChunkedTopK, DCT", "sparse", over("ChunkedTopK(k={}, dct=True)", (4, 16, 64, 256)), 2),
    Family("SignScale", "one bit", over("SignScale(block={})", (32, 128, 512, 4096)), 2),
    Family("Sign, L2 norm", "one bit", over("Unproven(SignScale(scale='l2', block={}))", (32, 128, 512, 4096)), 2),
    Family("TwoMeans", "one bit", over("TwoMeans(block={})", (32, 128, 512, 4096)), 2),
    Family("QSGD, nearest", "nearest", over("QSGD(bits={}, rounding='nearest')", BITS), 2),
    Family("MinMax, nearest", "nearest", over("MinMax(bits={}, rounding='nearest')", BITS), 2, 2.5),
    Family("LloydMax", "nearest", over("LloydMax(bits={})", (1, *BITS)), 3),
    Family("Grid", "nearest", over("Grid(bits={})", (1, *BITS)), 3),
    Family("QSGD, random", "random", over("QSGD(bits={})", BITS), 2),
    Family("QSGD, random, shrunk", "random", over("Contractive(QSGD(bits={}))", BITS), 2),
    Family("QSGD, Elias", "random", over("QSGD(levels={}, norm=2, coding='elias')", (1, 4, 16, 64)), 2),
    Family("MinMax, random", "random", over("MinMax(bits={})", BITS), 2, 2.5),
    Family("TernGrad", "random", over("TernGrad(block={})", (128, 512, 4096)), 1),
    Family("Natural", "random", over("Natural(bits={})", (2, 3, 4, 9)), 3, 2.5),
    Family("Cast, 16 bits", "float", over("Cast({})", ("bfloat16", "float16")), 0),
    Family("Cast, 8 bits", "float", over("Cast({})", ("float8_e5m2", "float8_e4m3fn")), 1),
    Family("Rotated sign", "rotated", over("Rotated(SignScale(block={}))", (128, 512, 4096)), 2),
    Family("Rotated LloydMax", "rotated", over("Rotated(LloydMax(bits={}))", (0.5, 1, 1.5, *BITS)), 5),
    Family("Rotated Grid", "rotated", over("Rotated(Grid(bits={}))", (1, *BITS)), 3),
    Family("Sketch, SRHT", "sketch", over("Sketch(ratio={})", SHARES), 1),
    Family("Sketch, count", "sketch", over("Sketch(ratio={}, kind='count')", SHARES), 1),
    Family(
        "Sketch, Gaussian", "sketch", over("Sketch(ratio={}, kind='gaussian')", SHARES),
        limit=4096, why="it draws d times s numbers at every step",
    ),
)  # fmt: skip


def classes(c: cc.Compressor) -> Iterator[type[cc.Compressor]]:
    """The compressor's own class, and those of what it wraps."""
    yield type(c)
    for f in fields(c):
        inner = getattr(c, f.name)
        if isinstance(inner, cc.Compressor):
            yield from classes(inner)
