"""Finds the first parameter whose bits differ between the ranks, or will, since nobody averages it."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.transport import Transport
from .agreement import gather
from .host import SCRIPT, Host
from .observer import Observer
from .running_flow import RunningFlow
from .setup import Setup
from .steps import Steps


class Comparison(Observer):
    """Compares the replicas after every ``check_every`` steps."""

    def __init__(self, setup: Setup, steps: Steps) -> None:
        self._setup, self._steps = setup, steps

    def after_step(self, flows: Sequence[RunningFlow], exposed: float) -> None:
        number, setup = self._steps.scheduler.number, self._setup
        if number % setup.options.check_every == 0:
            check(
                self._steps.scheduler.everyone,
                setup.replicas(),
                number,
                alone=setup.unaveraged(),
                host=setup.options.host,
            )
            if setup.shards is not None:
                shard, held = setup.shards()
                check(self._steps.scheduler.everyone, held, number, host=setup.options.host, shard=shard)


class DivergenceError(RuntimeError):
    """A parameter's bits differ between ranks that should hold the same model, or will: nobody averages it."""


def check(
    transport: Transport,
    parameters: Sequence[tuple[str, Tensor]],
    step: int,
    call: str = "check_every",
    alone: Sequence[str] = (),
    host: Host = SCRIPT,
    shard: int = 0,
) -> None:
    """Compares a 64-bit BLAKE2 hash of every parameter over the ranks: 8 bytes each on the wire, and what each rank
    knows of parameters that train ``alone``. Those are compared whose ranks hold the same ``shard``.

    Raises:
        DivergenceError: on every rank, naming the first parameter that differs, and the ranks that hold the minority;
            or one that trains alone.
    """
    size = 8 * len(parameters)
    mine = b"".join(
        [
            size.to_bytes(8, "little"),
            shard.to_bytes(8, "little"),
            *(digest(t) for _, t in parameters),
            few(alone).encode(),
        ]
    )
    rows = gather(transport, mine, call)
    if any(row[:8] != mine[:8] or len(row) < 16 + size for row in rows):
        counts = [int.from_bytes(row[:8], "little") // 8 for row in rows]
        raise DivergenceError(
            f"{call}, step {step}: the ranks hold different numbers of parameters: {counts}, in rank order. Build the "
            f"same model on every rank."
        )
    told = [row[16 + size :].decode("utf-8", "replace") for row in rows]
    if any(told):
        raise DivergenceError(f"{call}, step {step}: {next(filter(None, told))} {host.alone}")
    table = np.frombuffer(b"".join(row[8 : 16 + size] for row in rows), dtype=np.uint64).reshape(transport.world, -1)
    shards, hashes = table[:, 0], table[:, 1:]
    for one in np.unique(shards):
        holders = np.flatnonzero(shards == one)
        wrong = (hashes[holders] != hashes[holders[0]]).any(0)
        if not wrong.any():
            continue
        first = int(wrong.argmax())
        column = hashes[holders, first]
        values, counts = np.unique(column, return_counts=True)
        usual = values[counts.argmax()] if counts.max() > 1 else column[0]
        ranks = [int(r) for r in holders[column != usual]]
        raise DivergenceError(
            f"{call}, step {step}: parameter {parameters[first][0]!r} differs between the ranks (rank"
            f"{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))} from the others), as do {int(wrong.sum()) - 1} "
            f"more. Something changed it outside the averaged gradient: an unequal start, optimizer or buffer."
        )


def few(names: Sequence[str]) -> str:
    """The first of some parameters."""
    text = ", ".join(map(repr, names[:3]))
    return text and f"parameter{'s' * (len(names) > 1)} {text}{', ...' if len(names) > 3 else ''}"


def digest(tensor: Tensor) -> bytes:
    """A 64-bit BLAKE2 hash of a tensor's bits."""
    content: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return blake2b(content, digest_size=8).digest()
