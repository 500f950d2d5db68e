"""Cast: fewer bytes by rounding to 16 bits, or to 8 under a scale per block. The honest baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.random import Rng
from ..core.rows import Find, Inputs
from .qsgd import check_block

_EIGHT = (torch.float8_e4m3fn, torch.float8_e5m2)
_WIDE = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, repr=False)
class Cast(Compressor):
    """C(x)_j = x_j rounded to ``to``, to nearest, ties to even. Biased, deterministic.

    bfloat16: relative error at most 2**-8 per element, so delta = 1 - 2**-16. float16: magnitudes below 6e-8 are lost
    and finite ones from 65520 on do not fit; such an element is not sent and its step counts as overflow, so delta is
    None. Both are linear up to rounding in ``to``: sums of payloads are payloads, rounded once per addition. Where we
    choose the route, payloads are gathered (or exchanged in two phases) and summed in fp32 instead.

    float8_e4m3fn, float8_e5m2: C(x)_j = S round(x_j/S), S = max|x|/top over a block of n elements, top the type's
    largest finite number (448; 57344). With u = 2**-4 (e4m3fn) or 2**-3 (e5m2), a normal element's error is at most
    u/(1 + u) of it, and a subnormal's at most half the least subnormal, h = 2**-10 or 2**-17, times S; one element is
    at top. So |x - C(x)|^2 <= max((u/(1 + u))^2, (n - 1) (h/top)^2) |x|^2 for every x, the first up to n = 7e8, and
    delta = 1 - max(u^2, (n - 1) (h/top)^2): 1 - 2**-8, 1 - 2**-6. On Gaussian data 6.9e-4 and 2.75e-3 of |x|^2 are
    lost. Not linear: the scales of two ranks differ. Blocks whose largest element is below 2**-100 are sent as zero; a
    step in which a scale overflows counts as overflow.

    Wire, 16 bits: 16 bits per element, a parameter padded to four bytes. Wire, 8 bits: ceil(d/block) scales S (fp32),
    then a byte per element in the type's own encoding, padded to four bytes: 8.06 bits per element for blocks of 512.
    No state.

    Source of the 8-bit types: Micikevicius et al. 2022 (arXiv:2209.05433), Table 1. They scale whole tensors.

    Args:
        to: torch.bfloat16, float16, float8_e4m3fn or float8_e5m2.
        block: elements that share a scale, a multiple of 16; 8-bit types only.
    """

    to: torch.dtype
    dense_below: int = 1024
    block: int = 512

    keeps_zeros = True
    hint = "Use Cast(bfloat16), which keeps fp32's range."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.to not in _WIDE + _EIGHT:
            names = ", ".join(map(str, _WIDE + _EIGHT[:1]))
            raise ValueError(f"Cast({self.to!r}): the wire types are {names} and {_EIGHT[1]}.")
        check_block(repr(self), self.block)
        default = next(f.default for f in fields(self) if f.name == "block")
        if self.to in _WIDE and self.block != default:
            raise ValueError(f"{self!r}: 16-bit types need no scales and so no block. Leave it out.")

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return self.to in _WIDE

    @property
    def dtype(self) -> torch.dtype:
        return self.to if self.to in _WIDE else torch.float32

    @property
    def alignment(self) -> int:
        return 1 if self.to in _WIDE else self.block

    def delta(self, numel: int) -> float | None:
        if self.to in _WIDE:
            return 1.0 - 2.0**-16 if self.to == torch.bfloat16 else None
        unit, half, top = (2.0**-3, 2.0**-17, 57344) if self._e5m2 else (2.0**-4, 2.0**-10, 448)
        return max(0.0, 1.0 - max(unit**2, (min(numel, self.block) - 1) * (half / top) ** 2)) or None

    def section(self, numel: int) -> int:
        return 2 * numel if self.to in _WIDE else 4 * -(-numel // self.block) + numel

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        if self.to in _WIDE:
            ops.cast_encode(*i, self.to == torch.float16)
        else:
            ops.float8_encode(*i, self._e5m2, self.block)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        if self.to in _WIDE:
            ops.cast_decode(wires, table, skip, out, scale, accumulate, self.to == torch.float16)
        else:
            ops.float8_decode(wires, table, skip, out, scale, accumulate, self._e5m2, self.block)

    @property
    def _e5m2(self) -> bool:
        return self.to == torch.float8_e5m2
