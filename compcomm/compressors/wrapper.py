"""What the compressors around one compressor share: they answer as what is inside, but for what they change."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.compressor import Compressor
from ..core.layout import Segment
from ..core.random import Rng
from ..core.rows import Find, Inputs
from ..core.state import Slot


def _passed_on(name: str) -> Any:
    return property(lambda self: getattr(self.compressor, name))


@dataclass(frozen=True, repr=False)
class CompressorWrapper(Compressor, ABC, abstract=True):
    """C' = C. To write one, override what differs. Its wire format and its decoder are those of C; ``delta``, ``omega``
    and ``unbiased`` are not passed on: what a wrapper promises, it says itself."""

    compressor: Compressor

    linear = _passed_on("linear")
    sparse = _passed_on("sparse")
    variable = _passed_on("variable")
    keeps_zeros = _passed_on("keeps_zeros")
    alignment = _passed_on("alignment")  # pyright: ignore[reportIncompatibleMethodOverride]
    dtype = _passed_on("dtype")  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        if not isinstance(self.compressor, Compressor):
            raise ValueError(
                f"{type(self).__name__}({self.compressor!r}): {self.compressor!r} is no compressor. Write the call."
            )

    def exact(self, segment: Segment) -> bool:
        return self.compressor.exact(segment)

    def section(self, numel: int) -> int:
        return self.compressor.section(numel)

    def kept(self, numel: int) -> int:
        return self.compressor.kept(numel)

    def gain(self, numel: int) -> float:
        return self.compressor.gain(numel)

    def slots(self, segment: Segment) -> Mapping[str, Slot]:
        return self.compressor.slots(segment)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        self.compressor.encode_rows(i, gain, rng, hints, find)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        self.compressor.decode_rows(wires, table, skip, out, scale, accumulate, rng, find)

    def zero_rows(self, wire: Tensor, table: Tensor, out: Tensor, rng: Rng, find: Find) -> None:
        self.compressor.zero_rows(wire, table, out, rng, find)
