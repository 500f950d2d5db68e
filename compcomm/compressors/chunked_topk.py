"""ChunkedTopK: the k largest elements of every 64 x 64 chunk of a matrix, or of its cosine transform."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.compressor import Compressor
from ..core.layout import Segment
from ..core.random import Rng
from ..ops.reference.bits import pack12, packed_bytes, unpack12
from .topk import is_integer

SIDE = 64
CHUNK = SIDE * SIDE
LOST = {torch.float32: 0.0, torch.bfloat16: 2.0**-16, torch.float16: None}  # of what is kept, at most


@dataclass(frozen=True, repr=False)
class ChunkedTopK(Compressor):
    """C(x) keeps the k (1 to 4096) elements of largest magnitude of each chunk of 64 x 64, the first of equal ones, as
    ``values``: torch.bfloat16, float16 or float32.

    ``dct=True``: of each chunk's cosine transform D X D^T, D_ij = c_i cos(pi (2j + 1) i/128), which is orthonormal:
    what is left out has the same norm there. D^T Y D is received.

    A parameter is a matrix of shape[0] rows: its whole chunks come first, row by row, then the columns at the right
    that fill none, then the rows below. Those, vectors, and an owner's piece of a parameter are cut into runs of 4096,
    taken as 64 x 64. Of a last run of r < 4096, which is not transformed, min(k, r) are kept.

    delta = k/min(d, 4096) with fp32 values; times 1 - 2^-16 with bfloat16; none with float16, which cuts beyond 65504
    and loses what is below 6e-8. Biased, not linear; sparse without ``dct``. With it, a chunk that has an element of
    2^100 or more is not sent.

    Wire, per parameter: the K values, chunk by chunk, by falling magnitude; then their K places in the chunks, 12 bits
    each, two in three bytes, low bits first. 28 k/4096 bits per element with 16-bit values: 0.44 for k = 64. No state.

    Source: Peng, Quesnelle, Kingma 2024, DeMo (arXiv:2411.19870), with ``dct``; Sarfi et al. 2025, SparseLoCo
    (arXiv:2508.15706), without, 12-bit places. Their chunks' sides are the greatest divisors of the matrix's up to 64.
    """

    k: int = 64
    dct: bool = False
    values: torch.dtype = torch.bfloat16
    dense_below: int = 1024

    alignment = CHUNK  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    sparse = keeps_zeros = property(lambda self: not self.dct)  # pyright: ignore[reportAssignmentType]
    hint = "Use values=bfloat16 or float32."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_integer(self.k) or not 1 <= self.k <= CHUNK:
            raise ValueError(f"{self!r}: k={self.k!r} is not a number of elements of a chunk, 1 to {CHUNK}.")
        if not isinstance(self.dct, bool) or self.values not in LOST:
            raise ValueError(f"{self!r}: dct is True or False, and values bfloat16, float16 or float32.")

    def delta(self, numel: int) -> float | None:
        lost = LOST[self.values]
        return None if lost is None else min(1.0, self.k / max(1, min(numel, CHUNK))) * (1 - lost)

    def kept(self, numel: int) -> int:
        return numel // CHUNK * self.k + min(numel % CHUNK, self.k)

    def section(self, numel: int) -> int:
        return self.kept(numel) * self.values.itemsize + packed_bytes(self.kept(numel), 12)

    def encode(self, y: Tensor, segment: Segment, rng: Rng) -> Tensor:
        z = torch.cat([part.reshape(-1) for part in _parts(y, segment)])
        chunks = F.pad(z, (0, -len(z) % CHUNK)).view(-1, CHUNK)
        if self.dct:
            whole, d = chunks[: len(z) // CHUNK].view(-1, SIDE, SIDE), cosines(y.device)
            whole.copy_(d @ torch.where(whole.abs().amax((1, 2), True) < 2.0**100, whole, 0.0) @ d.T)
        # A magnitude's bits grow with it; below them the place, so that no two are equal, and all devices choose alike.
        place = torch.arange(CHUNK, dtype=torch.float64, device=y.device)
        places = (chunks.abs().view(torch.int32).double() - place / CHUNK).topk(self.k, dim=1).indices
        kept = chunks.gather(1, places).view(-1)[: (count := self.kept(len(z)))]
        values = kept.clamp(-(top := torch.finfo(self.values).max), top).to(self.values)
        return torch.cat((values.view(torch.uint8), pack12(places.view(-1)[:count])))

    def decode(self, code: Tensor, segment: Segment, rng: Rng) -> Tensor:
        numel, count = segment.numel, self.kept(segment.numel)
        values, places = code.tensor_split([count * self.values.itemsize])
        chunk = torch.arange(count, dtype=torch.int64, device=code.device) // self.k
        z = torch.zeros(-(-numel // CHUNK) * CHUNK, dtype=torch.float32, device=code.device)
        z[chunk * CHUNK + unpack12(places, count)] = values.view(self.values).float()
        if self.dct:
            whole, d = z[: numel // CHUNK * CHUNK].view(-1, SIDE, SIDE), cosines(code.device)
            whole.copy_(d.T @ whole @ d)
        out = torch.empty_like(z[:numel])
        parts = _parts(out, segment)
        for part, given in zip(parts, z[:numel].split([part.numel() for part in parts]), strict=True):
            part.copy_(given.view(part.shape))
        return out


def _parts(flat: Tensor, segment: Segment) -> list[Tensor]:
    """Views of a parameter: its chunks [down, across, 64, 64], the columns right of them, the rows below; or itself."""
    rows = segment.shape[0] or 1 if segment.whole and len(segment.shape) > 1 else 1
    down, across = rows // SIDE, len(flat) // rows // SIDE
    if not down * across:
        return [flat]
    upper, below = flat.view(rows, -1).split([down * SIDE, rows - down * SIDE])
    inner, right = upper.split([across * SIDE, upper.shape[1] - across * SIDE], dim=1)
    return [inner.unflatten(1, (across, SIDE)).unflatten(0, (down, SIDE)).transpose(1, 2), right, below]


@lru_cache(maxsize=8)
def cosines(device: torch.device) -> Tensor:
    """The orthonormal DCT-II of 64 numbers as a matrix, fp32."""
    i = torch.arange(SIDE, dtype=torch.float64)
    d = torch.cos(pi / (2 * SIDE) * i[:, None] * (2 * i + 1)) * (2 / SIDE) ** 0.5
    d[0] *= 0.5**0.5
    return d.float().to(device)
