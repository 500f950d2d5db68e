"""Gradients that DDP leaves as they were in the last of several passes, where an earlier one had made them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..bucket import Bucket, Layout


class Remainder:
    """With ``find_unused_parameters`` DDP delivers no mean to a parameter that no rank used in the pass. Among the
    first of several passes some rank may have used it (then all have a gradient of it), so the sum in the bucket, and
    its mean, are to be delivered still. ``add`` each bucket of the last pass, and ``deliver`` once DDP has ended."""

    def __init__(self) -> None:
        self._held: list[tuple[Tensor, Tensor, int]] = []

    def add(self, bucket: Any, layout: Layout) -> None:
        """Notes what the gradients are, to see whether DDP writes to them."""
        if bucket.index() == 0:
            self._held = []
        means = Bucket(bucket.buffer(), layout)
        for parameter, segment in zip(bucket.parameters(), layout.segments, strict=True):
            if parameter.grad is not None:
                self._held.append((parameter, means.view(segment), parameter.grad._version))

    def deliver(self) -> None:
        """Gives means to whom DDP gave none."""
        for parameter, mean, version in self._held:
            gradient = parameter.grad
            if gradient is not None and gradient._version == version and gradient.data_ptr() != mean.data_ptr():
                gradient.copy_(mean)
        self._held = []
