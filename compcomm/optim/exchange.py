"""A flat vector averaged between the ranks, bucket by bucket, while the optimizer computes.

What optimizers want of the engine's session they ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.collectives import AllReduceMax
from ..core.compressor import Compressor
from ..core.layout import Bucket, Layout
from ..core.reducer import Reducer
from ..core.transport import Transport
from ..engine.attachment import Attachment
from ..engine.host import Host
from ..engine.options import Options
from ..engine.statistics import Report
from ..hosts.joining import connect
from .flat import Batch, Flat


class Exchange:
    """A reducer at work on vectors that are laid out as ``flat`` says.

    Every rank calls the same, in the same order.
    """

    def __init__(
        self,
        reducer: Reducer | Compressor,
        flat: Flat,
        group: dist.ProcessGroup | None,
        timeout: timedelta | float | None,
        seed: int,
        facts: Mapping[str, Any],
        host: Host,
        trial: Callable[[Reducer, Layout], None] | None = None,
    ) -> None:
        """Collective over the group.

        Raises:
            AgreementError: the ranks differ in parameters, reducer or ``facts``, or one of them cannot take part.
        """
        options = Options(reducer, seed=seed, host=host)
        named: list[tuple[str, nn.Parameter]] = flat.named
        transport = connect(group, flat.device, timeout)
        self.attachment = Attachment(transport, options, named, trial=trial, layouts=flat.layouts, facts=facts)
        self._flat = flat
        self._flag = torch.zeros(1, dtype=torch.uint8, device=flat.device)
        self._interrupted: str | None = None

    def average(self, vector: Tensor, arrived: Callable[[Batch], None]) -> None:
        """The mean over the ranks of a whole vector of finite numbers, in place; ``arrived(batch)`` is called once a
        batch's mean is there, while the next ones travel.

        Raises:
            Exception: what went wrong: the original error here, PeerError or TransportError at the others. Nothing can
                be averaged any more.
        """
        self.check()
        try:
            self._average(vector, arrived)
        except BaseException as error:  # also an interrupt: the peers may have had a part of this rank's buckets
            self._interrupted = type(error).__name__
            raise

    def _average(self, vector: Tensor, arrived: Callable[[Batch], None]) -> None:
        batches = self._flat.batches
        left = len(self._flat.layouts)
        self.attachment.begin_step()
        under_way: list[list[Any]] = []
        for batch in batches:
            futures: list[Any] = []
            for (start, stop), layout in zip(batch.spans, batch.layouts, strict=True):
                left -= 1
                futures.append(self.attachment.submit(Bucket(vector[start:stop], layout), last=not left))
            under_way.append(futures)
        self.attachment.steps.waiting()
        for batch, futures in zip(batches, under_way, strict=True):
            for future in futures:
                future.wait()
            # What failed arrives as NaN in every element.
            first = [start for start, stop in batch.spans if start < stop]
            if bool(torch.isnan(vector[first]).any()):
                self.attachment.steps.synchronize()
                self.attachment.end_step()
                raise FloatingPointError(
                    f"{self.attachment.reducer!r}: a mean over the ranks is not finite although all of them sent "
                    f"finite numbers: their sum exceeds fp32's range. Go back to the last checkpoint."
                )
            arrived(batch)
        self.attachment.end_step()

    @property
    def transport(self) -> Transport:
        """What small messages of the optimizer's own go by."""
        return self.attachment.transport

    @property
    def step(self) -> int:
        """Vectors averaged so far, those before a checkpoint too: what random numbers depend on."""
        return self.attachment.step

    def report(self) -> Report:
        """What was sent, per step."""
        return self.attachment.report()

    def resume(self, step: int) -> None:
        """Goes on as after so many steps; what is reported per step begins anew."""
        self.attachment.state.resume(step)

    def reset_state(self) -> None:
        """Forgets what was not sent."""
        self.attachment.reset_state()

    def state_dict(self) -> dict[str, Any]:
        """What this rank did not send."""
        return self.attachment.state_dict()

    def portable_state_dict(self) -> dict[str, Any]:
        """The same of all ranks, merged. Collective."""
        return self.attachment.portable_state_dict()

    def prepare(self, state: Any, merged: bool, undo: ExitStack) -> Callable[[], None]:
        """What takes such a state; all of it is checked before anything changes."""
        return self.attachment.state.prepare("load_state_dict", state, merged, undo)[1]

    def close(self) -> None:
        """Ends the threads."""
        self.attachment.detach()

    def check(self) -> None:
        """Raises where nothing can be averaged any more."""
        self.attachment.check()
        if self._interrupted:
            raise RuntimeError(
                f"{self.attachment.reducer!r}: an exchange was left in the middle ({self._interrupted}), and its ranks "
                f"no longer know what each other has. Restart from a checkpoint."
            )

    def any(self, flags: Tensor) -> Tensor:
        """The OR of uint8 flags over the ranks, in place: one small message, between two vectors."""
        self.check()
        self.transport.start(AllReduceMax(flags)).wait()
        return flags

    def all(self, said: bool) -> bool:
        """Whether every rank says so."""
        return not int(self.any(self._flag.fill_(not said)))
