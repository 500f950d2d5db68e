"""DDP's backward pass as a hook sees it: what it is handed, what it answers, and when the pass is over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

engine: Any = torch.autograd.Variable._execution_engine  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
"""Autograd's, which calls back when a backward pass is over."""


def graph_task() -> int:
    """The number of the backward pass that this thread is in, or -1. A nested pass has its own."""
    untyped: Any = torch
    return untyped._C._current_graph_task_id()


def refuse_pairs(bucket: Any) -> None:
    """Raises TypeError for what DDP hands over in a mode that takes no notice of the answer."""
    if isinstance(bucket, tuple):
        raise TypeError(
            "ddp_hook: got a gradient and its parameter in place of a bucket: DDP's python_reducer mode ignores what "
            "a hook returns. Use torch._dynamo.config.optimize_ddp = 'ddp_optimizer'."
        )


def as_it_is(flat: Tensor) -> torch.futures.Future[Tensor]:
    """An answer that is there: the bucket is delivered as it lies."""
    made: Any = torch.futures.Future
    future: Any = made(devices=[flat.device] if flat.is_cuda else None)
    future.set_result(flat)
    return future


def once_over(call: Callable[[], None]) -> None:
    """Calls it once this backward pass is over, and DDP has given every parameter its gradient."""
    try:
        engine.queue_callback(partial(engine.queue_callback, call))  # DDP's own callback comes between the two
    except RuntimeError:  # not inside a backward pass: DDP's join() shadows one
        call()
