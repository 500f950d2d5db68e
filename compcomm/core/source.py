"""What a reduction averages, and where the mean goes: the two operands of every ``reduce``."""

from __future__ import annotations

from typing import NamedTuple

from .layout import Bucket, Layout


class Source(NamedTuple):
    """y = decay*x + add_scale*add, which is coded and averaged; afterwards ``x`` holds y minus what was sent.

    ``add`` is only read. One of the two may lack the segments that travel uncompressed; memory, which has no padding,
    is usually ``x``, and a gradient in a host's buffer ``add``.
    """

    x: Bucket
    add: Bucket | None = None
    decay: float = 1.0
    add_scale: float = 1.0

    @property
    def widest(self) -> Bucket:
        """The one of the two that has all segments: where both have, the longer buffer. A sharded host's has padding,
        which says where rows end."""
        x, add = self.x, self.add
        if add is None:
            return x
        a, b = x.layout, add.layout
        return x if (len(a.segments), a.numel) > (len(b.segments), b.numel) else add

    @property
    def layout(self) -> Layout:
        """All segments of y, numbered as in headers and statuses."""
        return self.x.layout if self.add is None else self.widest.layout

    @property
    def layouts(self) -> tuple[Layout, Layout | None]:
        """Of ``x`` and ``add``, as tables for kernels are asked for."""
        return self.x.layout, None if self.add is None else self.add.layout


class Target(NamedTuple):
    """out = (out if accumulate) + scale * the mean.

    ``out`` may be the source's ``add``, and may be its ``x`` where nobody needs the error. ``row``: what is wanted is
    this rank's row of a sharded host's buffer alone (``Layout.equal_rows``), whose segments ``out`` has. How the buffer
    is laid out is ``State.layout``: a source may be a scheme's memory, which has neither padding nor all segments.
    """

    out: Bucket
    scale: float = 1.0
    accumulate: bool = False
    row: bool = False
