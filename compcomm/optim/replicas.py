"""What would make ranks train apart, or in vain, found out before it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..core.transport import Transport
from ..engine import replicas
from ..engine.agreement import gather
from .flat import Flat


def unfrozen(call: str, left: Sequence[tuple[str, Tensor]]) -> None:
    """Raises RuntimeError where a parameter that the optimizer left out has a gradient."""
    for name, p in left:
        if p.requires_grad and p.grad is not None:  # else it has the gradient of before it was frozen
            raise RuntimeError(
                f"{call}: parameter {name!r} has a gradient, and had requires_grad=False when the optimizer was made: "
                f"its variance was not measured. Make the optimizer (and DDP) anew after unfreezing."
            )


def uneven(call: str, ddp: Any) -> None:
    """Raises RuntimeError where a DDP model stands in for ranks that have no more batches."""
    join: Any = getattr(ddp, "_join_config", None)
    if getattr(join, "enable", False):
        raise RuntimeError(
            f"{call}: uneven inputs (model.join()): a rank that is through takes no further step, and the others wait "
            f"for its momentum. Give all ranks the same number of batches (drop_last=True)."
        )


def compare(call: str, transport: Transport, flat: Flat, step: int, alike: bool) -> None:
    """Compares the ranks without DDP before their first step: gradients, and parameters where they should be ``alike``.

    Raises:
        DivergenceError: parameters differ.
        RuntimeError: gradients are equal.
    """
    if alike:
        replicas.check(transport, flat.named, step, f"{call}, without DDP")
    grads = [p.grad for p in flat.params if p.grad is not None]
    rows = gather(transport, b"".join(replicas.digest(g) for g in grads), call)
    if any(bool(g.any()) for g in grads) and all(row == rows[0] for row in rows):
        raise RuntimeError(
            f"{call}: the gradients of all ranks are equal to the bit. Either DDP averages them already: give the "
            f"optimizer the DDP model itself, {call}(ddp_model, ...), after DDP(...); or all ranks were given the same "
            f"batch, and there is nothing to average."
        )
