"""How a broken promise is reported."""

from __future__ import annotations

from torch import Tensor

from ..core.description import Described


class ContractError(AssertionError):
    """A compressor or reducer does not keep what it declares."""


def demand(kept: bool | Tensor, what: Described, promise: str) -> None:
    """Raises unless the promise was kept.

    Raises:
        ContractError: naming the object and the promise.
    """
    if not bool(kept):
        raise ContractError(f"{what!r}: {promise}")


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, but for the sign of zero; NaN equals NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())
