"""What a plan says: a row for every method, and which one to use; as text, and ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import units
from .hosts import DDP, Host
from .kernels import Kernels
from .link import Link
from .recommend import Recommendation
from .step import Prediction

COLUMNS = ("method", "ms/step", "exposed", "kernels", "wire", "MB/rank", "ratio", "pays", "vs fp32", "vs bf16")
TIME_ALONE = "(time per step alone: how many steps a loss takes with each method is not predicted)"


@dataclass(frozen=True)
class Row:
    """A method's prediction. ``pays``: where its step is shorter than the best uncompressed one's, as (lowest, highest)
    bits per second, 0 and infinity for no bound; none: on no link. It need not begin at 0: fewer rounds may win where
    latency counts, and more bytes lose below. None: it is uncompressed itself. ``over_fp32`` and ``over_bf16``: the
    step's speed-up (None where that is not in the plan)."""

    short: str
    prediction: Prediction
    pays: tuple[tuple[float, float], ...] | None
    over_fp32: float | None
    over_bf16: float | None

    def cells(self) -> tuple[str, ...]:
        """One line of a table: times in milliseconds, bytes in megabytes that a rank sends."""
        p = self.prediction
        return (
            self.short,
            *(f"{1e3 * value:.1f}" for value in (p.seconds, p.exposed, p.kernels, p.wire)),
            f"{p.sent / 1e6:.2f}",
            f"{p.ratio:.1f}x",
            "-" if self.pays is None else ", ".join(span(*bounds) for bounds in self.pays) or "no link",
            *("-" if gain is None else f"{gain:.2f}x" for gain in (self.over_fp32, self.over_bf16)),
        )

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON: None stands for no bound."""
        pays = self.pays and [[low, None if high == float("inf") else high] for low, high in self.pays]
        more = {
            "pays_bits_per_second": pays,
            "speedup_over_fp32": self.over_fp32,
            "speedup_over_bf16": self.over_bf16,
        }
        return {**self.prediction.as_dict(), **more}


@dataclass(frozen=True)
class Plan:
    """What ``plan`` found; ``rows`` go from the method that loses least to the one that loses most. ``hint``: what an
    option would gain that was not given."""

    model: str
    numel: int
    world: int
    link: Link
    compute: float
    buckets: tuple[int, ...]
    rows: tuple[Row, ...]
    recommendation: Recommendation
    kernels: Mapping[str, Kernels]
    host: Host = field(default_factory=DDP)
    hint: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Heads of the table."""
        return tuple(c.replace("rank", self.host.per) for c in COLUMNS)

    @property
    def title(self) -> str:
        """What was planned, in one line."""
        return (
            f"{self.model}: {self.numel:,} elements in {len(self.buckets)} {self.host.pieces[len(self.buckets) != 1]}, "
            f"{self.world} workers{self.host}, {self.link}, {units.duration(self.compute)} of computation; kernels on "
            "this machine's CPU"
        )

    @property
    def advice(self) -> str:
        """What to do, and why."""
        found = self.recommendation
        hint = f"\n  ({self.hint})" if self.hint else ""
        return f"{found.line}\n  ({found.reason}){hint}\n  {TIME_ALONE}"

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "model": self.model,
            "numel": self.numel,
            "workers": self.world,
            **self.host.as_dict(),
            "link": self.link.as_dict(),
            "compute_seconds": self.compute,
            "bucket_elements": list(self.buckets),
            "rows": [row.as_dict() for row in self.rows],
            "recommendation": self.recommendation._asdict(),
            **({"hint": self.hint} if self.hint else {}),
        }

    def __str__(self) -> str:
        lines = [self.columns, *(row.cells() for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
        body = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join([self.title, "", *(line.rstrip() for line in body), "", self.advice])


def span(low: float, high: float) -> str:
    """Between which rates a method pays.

    >>> span(0.0, 3e9), span(2e9, float("inf")), span(1e6, 2e6), span(0.0, float("inf"))
    ('< 3 Gbit/s', '> 2 Gbit/s', '1 to 2 Mbit/s', 'any link')
    """
    if high == float("inf"):
        return f"> {units.rate(low)}" if low else "any link"
    number, unit = units.rate(low).split(" ", 1)
    first = number if units.rate(high).endswith(f" {unit}") else units.rate(low)
    return f"{first} to {units.rate(high)}" if low else f"< {units.rate(high)}"
