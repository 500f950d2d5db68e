"""What ``attach`` gives for a model of ``fully_shard``: an attachment, and what is different about sharded models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from ..engine.attachment import Attachment
from ..engine.statistics import Report
from .weights import CompressedAllGather


class ShardedAttachment(Attachment):
    """See ``Attachment``. ``passes`` stays 1: FSDP adds gradients up itself (``set_requires_gradient_sync``)."""

    on_detach: Callable[[], None] | None = None
    """Gives the model back what carried its collectives before."""
    gathers: Sequence[CompressedAllGather] = ()
    """What carries weights, where that is compressed."""

    @property
    def passes(self) -> int:
        """Always 1: every backward pass that reduces gradients is a step."""
        return 1

    @passes.setter
    def passes(self, value: int) -> None:
        if value != 1:
            raise ValueError(
                f"passes = {value!r}: fully_shard adds gradients up itself. Call model.set_requires_gradient_sync("
                f"False) before all backward passes of a step but the last, and True before that."
            )

    @property
    def hold(self) -> bool:
        """False: where nothing goes between nodes, nothing waits to."""
        return False

    @hold.setter
    def hold(self, value: bool) -> None:
        raise AttributeError(
            f"hold = {value!r}: models that are sharded inside nodes have it: attach(..., between=...)."
        )

    def ignoring(self, average: bool = True) -> AbstractContextManager[None]:
        """See ``Attachment.ignoring``; a pass whose gradients shall stay this rank's own is FSDP's to make."""
        if average is False:
            raise ValueError(
                "ignoring(average=False): fully_shard has room for averaged gradients alone. Call "
                "model.set_requires_gradient_sync(False) before the pass, or ignore it with average=True."
            )
        return super().ignoring(average)

    def report(self) -> Report:
        """See ``Attachment.report``; ``weight_bytes``: what gathers of weights sent besides, which no seconds count."""
        found = super().report()
        sent, dense = (sum(counts) / max(1, found.steps) for counts in (
            [g.sent for g in self.gathers], [g.dense for g in self.gathers]
        ))  # fmt: skip
        return replace(found, weight_bytes=sent, weight_bytes_dense=dense)

    def detach(self) -> None:
        """FSDP carries its collectives as before. A step that is under way is given up."""
        told, self.on_detach = self.on_detach, None
        if told is not None:
            told()
        super().detach()
