"""Finds the first parameter whose bits differ between the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..transports.process_group import ProcessGroup
from .agree import gather


class DivergenceError(RuntimeError):
    """A parameter's bits differ between ranks that should hold the same model."""


def check(
    transport: ProcessGroup,
    parameters: Sequence[tuple[str, Tensor]],
    step: int,
    device: torch.device,
    call: str = "check_every",
) -> None:
    """Compares a 64-bit BLAKE2 hash of every parameter over the ranks: 8 bytes each on the wire.

    Raises:
        DivergenceError: on every rank, naming the first parameter that differs, and the ranks that hold the minority.
    """
    mine = b"".join(digest(t) for _, t in parameters)
    rows = gather(transport, mine, device)
    if len({len(r) for r in rows}) != 1:
        raise DivergenceError(f"{call}, step {step}: the ranks hold different numbers of parameters.")
    hashes = np.frombuffer(b"".join(rows), dtype=np.uint64).reshape(transport.world, -1)
    wrong = (hashes != hashes[0]).any(0)
    if wrong.any():
        first = int(wrong.argmax())
        column = hashes[:, first]
        values, counts = np.unique(column, return_counts=True)
        usual = values[counts.argmax()] if counts.max() > 1 else column[0]
        ranks = [int(r) for r in np.flatnonzero(column != usual)]
        raise DivergenceError(
            f"{call}, step {step}: parameter {parameters[first][0]!r} differs between the ranks (rank"
            f"{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))} from the others), as do {int(wrong.sum()) - 1} "
            f"more. Something changed it outside the averaged gradient: an unequal start, optimizer or buffer."
        )


def digest(tensor: Tensor) -> bytes:
    """A 64-bit BLAKE2 hash of a tensor's bits."""
    content: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return blake2b(content, digest_size=8).digest()
