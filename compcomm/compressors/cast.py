"""Cast: half the bytes by rounding to 16 bits. The honest baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..compressor import Compressor, Inputs, ops
from ..rng import Rng


@dataclass(frozen=True, repr=False)
class Cast(Compressor):
    """C(x)_j = x_j rounded to ``to`` (bfloat16 or float16), to nearest, ties to even.

    bfloat16: relative error at most 2**-8 per element, so delta = 1 - 2**-16. float16: magnitudes below 6e-8 are lost
    and finite ones from 65520 on do not fit; such an element is not sent and its step counts as overflow, so delta is
    None. Linear up to rounding in ``to``: sums of payloads are payloads, rounded once per addition. Where we choose
    the route, payloads are gathered (or exchanged in two phases) and summed in fp32 instead.

    Wire: 16 bits per element, a parameter padded to four bytes. No state.
    """

    to: torch.dtype
    dense_below: int = 1024

    linear = True
    cure = "Use Cast(bfloat16), which keeps fp32's range."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.to not in (torch.bfloat16, torch.float16):
            raise ValueError(f"Cast({self.to!r}): the wire types are torch.bfloat16 and torch.float16.")

    @property
    def dtype(self) -> torch.dtype:
        return self.to

    def delta(self, numel: int) -> float | None:
        return 1.0 - 2.0**-16 if self.to == torch.bfloat16 else None

    def section(self, numel: int) -> int:
        return 2 * numel

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor]) -> None:
        ops.cast_encode(*i, self.to == torch.float16)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng
    ) -> None:
        ops.cast_decode(wires, table, skip, out, scale, accumulate, self.to == torch.float16)
