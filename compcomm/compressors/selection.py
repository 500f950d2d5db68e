"""What the compressors that select elements share: one wire format and its decoders."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.random import Rng
from ..core.rows import Find

BLOCK = 65536


@dataclass(frozen=True, repr=False)
class Selection(Compressor, ABC, abstract=True):
    """Sends some elements as they are, with their places; a subclass says how many at most (``kept``) and which.

    Wire, per parameter of d elements with room for k: ceil(d/65536) counts (u32), k offsets inside their block of
    65,536 (u16, ascending), padding to four bytes, k values (fp32): 48 bits per element of room. Counts may sum to less
    than k, and what is left over is zero bytes.
    """

    sparse = True
    keeps_zeros = True
    sends_values = True

    def section(self, numel: int) -> int:
        k = self.kept(numel)
        return 4 * -(-numel // BLOCK) + -(-2 * k // 4) * 4 + 4 * k

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        ops.topk_decode(wires, table, skip, out, scale, accumulate)

    def zero_rows(self, wire: Tensor, table: Tensor, out: Tensor, rng: Rng, find: Find) -> None:
        ops.topk_zero(wire.unsqueeze(0), table, out)

    def scatter_rows(self, wire: Tensor, table: Tensor, pieces: Tensor, out: Tensor, scale: float, grain: int) -> None:
        ops.topk_scatter(wire.unsqueeze(0), table, pieces, out, scale, grain)
