"""Gradients that DDP leaves as they were in the last of several passes, where an earlier one had made them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..core.layout import Bucket, Layout


class Remainder:
    """With ``find_unused_parameters`` DDP delivers no mean to a parameter that no rank used in the pass. Among the
    first of several passes some rank may have used it (then all have a gradient of it), so the sum in the bucket, and
    its mean, are to be delivered still. ``clear`` when a pass begins, ``add`` each bucket of the last one, and
    ``deliver`` once DDP has ended."""

    def __init__(self) -> None:
        self._held: list[tuple[Tensor, Tensor, int]] = []

    def clear(self) -> None:
        """Nothing is to be delivered."""
        self._held.clear()

    def add(self, flat: Tensor, parameters: Sequence[Tensor], layout: Layout) -> None:
        """Notes what the gradients of a bucket are, to see whether DDP writes to them."""
        means = Bucket(flat, layout)
        for parameter, segment in zip(parameters, layout.segments, strict=True):
            if parameter.grad is not None:
                self._held.append((parameter, means.view(segment), parameter.grad._version))

    def deliver(self) -> None:
        """Gives means to whom DDP gave none."""
        for parameter, mean, version in self._held:
            gradient = parameter.grad
            if gradient is not None and gradient._version == version and gradient.data_ptr() != mean.data_ptr():
                gradient.copy_(mean)
        self.clear()
