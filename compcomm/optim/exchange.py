"""A flat vector averaged between the ranks, bucket by bucket, while the optimizer computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..bucket import Layout
from ..collectives import AllReduceMax
from ..compressor import Compressor
from ..hooks.attachment import Attachment
from ..hooks.options import Options
from ..reducer import Reducer
from .flat import Batch, Flat


class Exchange:
    """A reducer at work on vectors that are laid out as ``flat`` says.

    ``send`` hands a batch over, ``receive`` waits for it: between the two it travels. Every rank calls the same, in
    the same order.
    """

    def __init__(
        self,
        reducer: Reducer | Compressor,
        flat: Flat,
        group: dist.ProcessGroup | None,
        timeout: timedelta | float | None,
        seed: int,
        facts: Mapping[str, Any],
        trial: Callable[[Reducer, Layout], None] | None = None,
    ) -> None:
        """Collective over the group.

        Raises:
            AgreementError: the ranks differ in parameters, reducer or ``facts``, or one of them cannot take part.
        """
        options = Options(reducer, group=group, timeout=timeout, seed=seed)
        named: list[tuple[str, nn.Parameter]] = flat.named
        self.attachment = Attachment(options, named, flat.device, trial, flat.layouts, facts)
        self._flat = flat
        self._buckets = len(flat.layouts)
        self._index = 0
        self._device = flat.device

    def send(self, vector: Tensor, batch: Batch) -> list[Any]:
        """Hands over a batch's part of a vector, which ``receive`` replaces by the mean over the ranks."""
        futures: list[Any] = []
        for (start, stop), layout in zip(batch.spans, batch.layouts, strict=True):
            last = self._index == self._buckets - 1
            futures.append(self.attachment.submit(vector[start:stop], layout, self._index, last))
            self._index = 0 if last else self._index + 1
        if self._index == 0:
            self.attachment.backward_over()
        return futures

    def receive(self, vector: Tensor, batch: Batch, futures: Sequence[Any]) -> None:
        """Waits for a batch.

        Raises:
            Exception: it failed, here or at a peer: see ``close``.
        """
        for future in futures:
            future.wait()
        # What failed arrives as NaN; what was sent was finite on all ranks.
        if bool(torch.isnan(vector[[start for start, _ in batch.spans]]).any()):
            self.close()
            raise FloatingPointError(
                f"{self.attachment.reducer!r}: a mean over the ranks is not finite although all of them sent finite "
                f"numbers: their sum exceeds fp32's range. Go back to the last checkpoint with a smaller rate."
            )

    def close(self) -> None:
        """Waits until a vector is through.

        Raises:
            Exception: what went wrong with it: the original error here, PeerError or TransportError at the others.
        """
        self.attachment.end_step()

    def average(self, vector: Tensor, arrived: Callable[[Batch], None]) -> None:
        """The mean over the ranks of a whole vector, in place; ``arrived(batch)`` is called once a batch's mean is
        there, while the next ones travel."""
        under_way = [self.send(vector, batch) for batch in self._flat.batches]
        for batch, futures in zip(self._flat.batches, under_way, strict=True):
            self.receive(vector, batch, futures)
            arrived(batch)
        self.close()

    def any(self, flags: Tensor) -> Tensor:
        """The OR of uint8 flags over the ranks, in place: one small message, between two vectors."""
        self.attachment.check()
        self.attachment.transport.start(AllReduceMax(flags)).wait()
        return flags

    def all(self, said: bool) -> bool:
        """Whether every rank says so."""
        return not int(self.any(torch.tensor([not said], dtype=torch.uint8, device=self._device)))
