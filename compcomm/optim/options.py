"""What an optimizer is told, checked before anything happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..combine.partition import Partition
from ..combine.uncompensated import Uncompensated
from ..combine.warmup import Warmup
from ..combine.wrapper import Wrapper
from ..compressors.sign import SignScale
from ..compressors.unproven import Unproven
from ..core.compressor import Compressor
from ..core.reducer import Reducer
from ..engine.host import Host
from ..feedback.error_feedback import ErrorFeedback
from ..routes.base import Route
from ..routes.choose import settle
from ..routes.exact import Exact


def host(call: str) -> Host:
    """How errors of what averages for an optimizer speak: its parameters have names, and a step of its own ends."""
    return Host(
        call=call,
        make="make it",
        what="optimizer",
        over="is detached. Make a new one, and a new DDP(...).",
        unfinished="After an error, restart from a checkpoint.",
        alike="Convert the model alike on every rank, before the optimizer (and DDP) is made.",
        regroup=f"Train before that, or make a new {call}, and a new DDP(...).",
    )


def feedback(call: str, compressor: Any) -> Compressor | Reducer:
    """The compressor under error feedback, by whatever route it has or is given."""
    if isinstance(compressor, SignScale) and compressor.scale == "l2":
        compressor = Unproven(compressor)
    if isinstance(compressor, Partition):
        return Partition({pattern: feedback(call, part) for pattern, part in compressor.parts.items()})  # pyright: ignore[reportCallIssue]
    if isinstance(compressor, ErrorFeedback):
        return compressor
    if isinstance(compressor, Wrapper) and not isinstance(compressor, Warmup | Uncompensated):
        inner: Any = compressor
        while isinstance(inner, Wrapper):
            inner = inner.reducer
        return compressor if isinstance(inner, ErrorFeedback) else ErrorFeedback(compressor)
    if not isinstance(compressor, Compressor | Route | Exact):
        raise TypeError(
            f"{call}(compressor={compressor!r}): give a compressor, such as SignScale() or QSGD(bits=4), a route "
            f"around one, such as TwoPhase(...), an ErrorFeedback, a Partition of them, or LGreCo or a schedule around "
            f"one: momentum has no other feedback. cc.parse(text) makes one from text."
        )
    return ErrorFeedback(compressor)


def check_warmup(call: str, warmup: Any, world: int) -> None:
    if not isinstance(warmup, Compressor | Reducer):
        raise TypeError(f"{call}(warmup={warmup!r}): give a reducer, such as Exact() or Cast(torch.bfloat16).")
    if settle(warmup, world).traits.stateful:
        raise ValueError(
            f"{call}(warmup={warmup!r}): it keeps what it does not send, and the warm-up ends without sending it. Use "
            f"Exact() or Cast(torch.bfloat16)."
        )


def check_options(call: str, group: Mapping[str, Any]) -> None:
    """Raises ValueError for options that no Adam can have."""
    for name in ("lr", "eps", "weight_decay"):
        value = group[name]
        if not isinstance(value, int | float | Tensor) or isinstance(value, bool):
            raise TypeError(
                f"{call}({name}={value!r}): a number, 0 or more. Groups over the parameters of a model go to params=."
            )
        if not 0.0 <= float(value) < float("inf"):
            raise ValueError(f"{call}({name}={value!r}): a number, 0 or more.")
    betas = group["betas"]
    if not isinstance(betas, tuple | list) or len(betas) != 2 or not all(0.0 <= float(b) < 1.0 for b in betas):
        raise ValueError(f"{call}(betas={betas!r}): two numbers in [0, 1), such as (0.9, 0.999).")
    if group.get("amsgrad"):
        raise ValueError(
            f"{call}(amsgrad=True): its running maximum of the variance ends with the warm-up. Leave it out."
        )
