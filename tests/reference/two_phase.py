"""The two-phase mean: everybody sends each owner its blocks, the owners average, encode again and tell everybody."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

F = np.float32
Code = Callable[[np.ndarray, int, int], np.ndarray]


def shares(numel: int, world: int, grain: int) -> list[slice]:
    """Of nb blocks of ``grain`` elements, rank r owns floor(r*nb/W) up to floor((r+1)*nb/W)."""
    blocks = -(-numel // grain)
    cuts = [min(numel, r * blocks // world * grain) for r in range(world + 1)]
    return [slice(cuts[r], cuts[r + 1]) for r in range(world)]


def two_phase(
    inputs: list[np.ndarray], grain: int, code: Code, errors: list[np.ndarray], server: list[np.ndarray] | None
) -> np.ndarray:
    """One step. ``code(y, offset, rank)`` is decode(encode(y)) of a piece that begins at element ``offset``.

    ``errors[r]`` (whole vectors) takes what rank r failed to send; ``server[r]``, the owners' residuals for their own
    shares, are added to the mean before it is encoded, and take what that encoding loses. In the second encoding the
    draws of rank r are those of "rank" -1-r.
    """
    world = len(inputs)
    out = np.zeros_like(inputs[0])
    for owner, piece in enumerate(shares(len(out), world, grain)):
        if piece.start == piece.stop:
            continue
        total = None
        for rank, y in enumerate(inputs):
            sent = code(y[piece], piece.start, rank)
            errors[rank][piece] = y[piece] - sent
            total = sent if total is None else total + sent
        mean = total * F(1.0 / world)
        if server is not None:
            mean = server[owner] + mean
        out[piece] = code(mean, piece.start, -1 - owner)
        if server is not None:
            server[owner] = mean - out[piece]
    return out
