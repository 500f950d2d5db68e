"""The hook of DistributedDataParallel, in the form that PyTorch asks for.

``model.register_comm_hook(cc.DDPState(reducer), cc.ddp_hook)`` works wherever a DDP model can be reached;
``state.bind(model)`` gives the parameters their names later. ``cc.attach`` does both and checks more.

What DDP does around a hook (torch 2.8 and later): the hook owns the division; buckets are rebuilt after the first step;
an exception in a future arrives as "Unable to cast ... to Tensor", without type and traceback. So our futures always
end well (with NaN where a step failed), and the error travels otherwise: the last bucket's call queues a callback on
the autograd engine, which queues another behind DDP's own end of the backward pass; that one raises the original.

After a backward pass of the user's that raised in the middle, DDP refuses the next forward pass ("Expected to have
finished reduction in the prior iteration") until ``model.reducer._reset_state()``. If it raised at the same place on
all ranks, so that each had handed over the same buckets, training may go on so: the next bucket 0 ends the old step
first. An attachment that broke says so in the next forward pass.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.layout import Bucket
from ..core.source import Source
from ..engine.attachment import Attachment
from ..engine.pace import Kind
from .backward import as_it_is, engine, refuse_pairs
from .bypass import Bypass
from .ddp_state import DDPState
from .names import check_dtype

GradBucket: Any = dist.GradBucket  # pyright: ignore[reportPrivateImportUsage]


def ddp_hook(state: DDPState, bucket: Any) -> torch.futures.Future[Tensor]:
    """Averages one bucket; registered with a ``DDPState``."""
    refuse_pairs(bucket)
    flat, index, last = bucket.buffer(), bucket.index(), bucket.is_last()
    try:
        pace, attachment = state.pace, state.attachment
    except AttributeError:
        raise TypeError(
            f"ddp_hook: its state is {state!r}. Wrap the reducer: "
            f"model.register_comm_hook(cc.DDPState(reducer), cc.ddp_hook)."
        ) from None
    kind = pace.take(index == 0, last)
    if index == 0:
        state.remainder.clear()  # of a pass that raised
    if not kind.sent:
        if attachment is not None:
            attachment.check()
        if last:
            state.witness.keep(bucket.parameters()[-1])
        if index == 0:
            state.look(flat, kind)
        return as_it_is(flat)
    bypass = None if state.controller is None else state.controller.bypass
    if attachment is not None and bypass is not None:
        return _past_us(state, attachment, bypass, bucket, kind)
    if flat.layout != torch.strided:
        raise TypeError("ddp_hook: a sparse gradient has no flat bucket. Build the embedding with sparse=False.")
    parameters = bucket.parameters()
    if last:
        state.witness.keep(parameters[-1])
    layout = state.layout(bucket, parameters)
    check_dtype(layout.segments[0].name if layout.segments else "", flat.dtype, "ddp_hook")
    attachment = attachment or state.open(flat.device)
    if index == 0:
        attachment.abandon_step()  # of a pass that raised
        attachment.begin_step(kind is Kind.STEP)
    future = attachment.submit(Source(Bucket(flat, layout)), last=last)
    if index == 0:
        state.look(flat, kind)
    if kind is Kind.STEP and state.passes > 1:
        state.remainder.add(flat, parameters, layout)
    if last:
        try:
            engine.queue_callback(partial(_after_ddp, state, attachment, kind, len(parameters) if index == 0 else 0))
        except RuntimeError:  # not inside a backward pass: DDP's join() shadows one
            attachment.end_step()
    return future


def _past_us(state: DDPState, attachment: Attachment, bypass: Bypass, bucket: Any, kind: Kind) -> Any:
    """Averages one bucket as DDP does without a hook."""
    flat, last = bucket.buffer(), bucket.is_last()
    if bucket.index() == 0:
        state.look(flat, kind)
    if last:
        state.witness.keep(bucket.parameters()[-1])
    if kind is Kind.STEP and state.passes > 1:
        parameters = bucket.parameters()
        state.remainder.add(flat, parameters, state.layout(bucket, parameters))
        if last:
            with suppress(RuntimeError):  # not inside a backward pass: DDP's join() shadows one
                engine.queue_callback(partial(engine.queue_callback, state.remainder.deliver))
    attachment.check()
    future, sent = bypass.average(flat)
    attachment.steps.bypassed(sent, last and kind is Kind.STEP)
    return future


def _after_ddp(state: DDPState, attachment: Attachment, kind: Kind, alone: int) -> None:
    attachment.steps.waiting()
    engine.queue_callback(partial(_end, state, attachment, kind, alone))


def _end(state: DDPState, attachment: Attachment, kind: Kind, alone: int) -> None:
    step = attachment.end_step()
    if kind is Kind.STEP:
        state.remainder.deliver()
        if attachment.enabled and step is not None:
            state.witness.note(step, alone)
    state.tell()


# DDP compares these with the classes themselves, not with their names.
ddp_hook.__annotations__ = {
    "state": DDPState, "bucket": GradBucket, "return": torch.futures.Future[Tensor]
}  # fmt: skip
