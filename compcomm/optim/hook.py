"""DDP's hook in an optimizer's hands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.compressor import Compressor
from ..core.deferred import not_finite
from ..core.reducer import Reducer
from ..engine.attachment import Attachment
from ..hosts.attach import watch
from ..hosts.backward import as_it_is, once_over, refuse_pairs
from ..hosts.ddp import DDPState, GradBucket, ddp_hook
from .options import host


class Hook:
    """DDP's hook while an optimizer has it: gradients are averaged by ``warmup``, then left alone.

    ``alarm(bad)``: whether any rank's gradients are not finite; then all ranks' become NaN, as they do where they are
    averaged, and every ``GradScaler`` finds that by itself. None: nobody asks.

    ``late(bad)``: the same in place of it, where parameters have gradients that DDP ignores: they are there when the
    backward pass is over, and are what one rank alone finds, also while the others are averaged.
    """

    def __init__(self, call: str) -> None:
        self.closed = False
        self.alarm: Callable[[bool], bool] | None = None
        self.late: Callable[[bool], None] | None = None
        self._flats: list[Tensor] = []
        self._bad = False
        self.attachment: Attachment | None = None
        self._call = call
        self._state: DDPState | None = None
        self._registered = False

    def start_gradient_averaging(
        self,
        ddp: Any,  # not kept: DDP holds this object where no garbage collector looks
        warmup: Compressor | Reducer | None,
        group: dist.ProcessGroup | None,
        timeout: timedelta | float | None,
        seed: int,
    ) -> None:
        """From now on gradients are averaged by ``warmup``; None: they are left alone. Collective."""
        if warmup is not None:
            self._state = DDPState(warmup, group=group, timeout=timeout, seed=seed)
            self._state.options = replace(self._state.options, host=host(self._call))
            self._state.bind(ddp)
            self.attachment = self._state.open(next(p.device for p in ddp.parameters()))
            watch(ddp, self.attachment)
        if not self._registered:
            ddp.register_comm_hook(self, optimizer_hook)
            self._registered = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        """For the copy of a DDP model, which has no hook in its reducer."""
        return Hook(self._call)

    def stop_gradient_averaging(self) -> None:
        if self.attachment is not None:
            self.attachment.detach()
        self._state = self.attachment = None

    def __call__(self, bucket: Any) -> torch.futures.Future[Tensor]:
        if self._state is not None:
            future = ddp_hook(self._state, bucket)
            if self.late is not None and bucket.is_last():
                once_over(partial(self.late, False))  # infinities that were averaged are everybody's
            return future
        if self.closed:
            raise RuntimeError(f"{self._call}: the optimizer of this DDP model is detached. Wrap it in a new DDP(...).")
        refuse_pairs(bucket)
        flat: Tensor = bucket.buffer()
        if self.alarm is not None:
            self._look_at(self.alarm, flat, bucket.index(), bucket.is_last())
        return as_it_is(flat)

    def _look_at(self, alarm: Callable[[bool], bool], flat: Tensor, index: int, last: bool) -> None:
        if index == 0:  # also after a backward pass that did not end
            self._flats, self._bad = [], False
        self._flats.append(flat)
        self._bad = self._bad or bool(not_finite(flat))
        if not last:
            return
        flats, self._flats = self._flats, []
        if self.late is not None:
            once_over(partial(self.late, self._bad))
            return
        if alarm(self._bad):
            for f in flats:  # DDP reads them once the backward pass is over
                f.fill_(float("nan"))


def optimizer_hook(state: Hook, bucket: Any) -> torch.futures.Future[Tensor]:
    """What DDP calls with each bucket."""
    return state(bucket)


optimizer_hook.__annotations__ = {
    "state": Hook, "bucket": GradBucket, "return": torch.futures.Future[Tensor]
}  # fmt: skip
