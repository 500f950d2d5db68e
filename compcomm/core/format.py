"""The wire format of a compressor: how many bytes a parameter takes, and which parameters are coded at all."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, ClassVar

from .layout import Segment


class Format:
    """What packing knows of a compressor: sections whose lengths follow from the shape alone."""

    if TYPE_CHECKING:
        dense_below: int

    variable: ClassVar[bool] = False
    """A section is often shorter than ``section(numel)``, which is then its capacity: it begins with a u32, the bytes
    that it takes in all, and the routes send no more than those."""
    keeps_zeros: ClassVar[bool] = False
    """What is zero is received as zero, whatever lies beside it. Else messages say which rows of a matrix are zero."""

    @property
    def alignment(self) -> int:
        """An owner's share of a parameter begins at a multiple of that many elements."""
        return 1

    def exact(self, segment: Segment) -> bool:
        """Whether this segment travels as it is: 1-D ones and those of fewer than ``dense_below`` elements."""
        least = getattr(self, "dense_below", 1024)
        return least > 0 and (len(segment.shape) <= 1 or prod(segment.shape) < least)

    def of(self, segment: Segment) -> Format:
        """The form in which this parameter, or a piece of it, is coded."""
        return self

    def section(self, numel: int) -> int:
        """Bytes of a coded parameter (or owner's piece) of ``numel`` elements: a function of the shape alone. Where the
        size is not known before, the capacity; unused bytes are zero."""
        raise NotImplementedError(f"{type(self).__name__}.section(numel), its bytes, is still to be written.")

    def kept(self, numel: int) -> int:
        """Elements sent of ``numel``, where only some are."""
        return 0

    def gain(self, numel: int) -> float:
        """A factor on the decoded value, applied by the sender: 1/(1 + omega) in ``Contractive``."""
        return 1.0
