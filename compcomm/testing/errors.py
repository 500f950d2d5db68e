"""How a broken promise is reported."""

from __future__ import annotations

from collections.abc import Sequence

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


def demand_of_all(kept: Tensor, names: Sequence[str], what: Described, promise: str) -> None:
    """``demand`` for one input after the other: ``kept`` has a row for each of the ``names``, and ``{}`` in the promise
    is that of the first that fails."""
    fine = kept.reshape(len(names), -1).all(1)
    if not bool(fine.all()):
        raise ContractError(f"{what!r}: {promise.format(names[int(fine.int().argmin())])}")


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, but for the sign of zero; NaN equals NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(alike(a, b).all())


def alike(a: Tensor, b: Tensor) -> Tensor:
    """Where both are equal, but for the sign of zero; NaN equals NaN."""
    return (a == b) | (a.isnan() & b.isnan())
