"""ChunkedTopK, element by element: the largest of each chunk, values first, then places of 12 bits."""

from __future__ import annotations

import numpy as np

SIDE, CHUNK = 64, 4096


def order(rows: int, columns: int) -> list[int]:
    """The elements of a matrix, chunk by chunk, then the columns at the right, then the rows below."""
    down, across = rows // SIDE * SIDE, columns // SIDE * SIDE
    if not down * across:
        return list(range(rows * columns))
    chunks = [
        (top + i) * columns + left + j
        for top in range(0, down, SIDE)
        for left in range(0, across, SIDE)
        for i in range(SIDE)
        for j in range(SIDE)
    ]
    right = [i * columns + j for i in range(down) for j in range(across, columns)]
    return chunks + right + list(range(down * columns, rows * columns))


def select(chunk: np.ndarray, k: int) -> list[int]:
    """Largest first; of equals the one that comes first."""
    return sorted(range(len(chunk)), key=lambda j: -abs(float(chunk[j])))[:k]


def encode(y: np.ndarray, shape: tuple[int, int], k: int) -> bytes:
    """fp32 values of all chunks, then their places as one number of 12 bits each, written by Python's integers."""
    y = y[order(*shape)]
    chosen = [(at + j, j) for at in range(0, len(y), CHUNK) for j in select(y[at : at + CHUNK], k)]
    stream = sum(place << 12 * n for n, (_, place) in enumerate(chosen))
    return y[[at for at, _ in chosen]].astype("<f4").tobytes() + stream.to_bytes(-(-len(chosen) * 12 // 8), "little")


def decode(section: bytes, shape: tuple[int, int], k: int) -> np.ndarray:
    """Each value at the place that its 12 bits say, in its chunk."""
    numel = shape[0] * shape[1]
    count = sum(min(k, numel - at) for at in range(0, numel, CHUNK))
    values = np.frombuffer(section, "<f4", count)
    stream, z = int.from_bytes(section[4 * count :], "little"), np.zeros(numel, np.float32)
    for n, value in enumerate(values):
        z[n // k * CHUNK + (stream >> 12 * n & 4095)] = value
    out = np.empty(numel, np.float32)
    out[order(*shape)] = z
    return out


def cosine(x: np.ndarray) -> np.ndarray:
    """The two-dimensional DCT-II of one chunk in double precision, as sums over its definition."""
    i = np.arange(SIDE)
    basis = np.array([np.cos(np.pi / SIDE * (i + 0.5) * f) * (1 if f else 0.5**0.5) for f in i]) * (2 / SIDE) ** 0.5
    return np.einsum("fi,gj,ij->fg", basis, basis, x.astype(np.float64))
