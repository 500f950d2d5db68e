"""What an attachment has done so far, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from .. import coded
from ..bucket import Layout
from ..reducer import Reducer
from ..store import Store
from ..transports.dry_run import cost
from .flight import Flight

SHOWN = 12
"""Parameters that have a line of their own in a table, the largest ones."""


class Counters(NamedTuple):
    """Sums since attach or load_state_dict on this rank: bytes, link headers apart, and seconds. ``controlled``:
    whether a controller chooses settings."""

    step: int
    bytes_sent: int
    kernel_seconds: float
    wire_seconds: float
    exposed_seconds: float
    review_seconds: float
    controlled: bool


@dataclass(frozen=True)
class Report:
    """Means per step since attach or load_state_dict, exact steps (warm-up, ``enabled = False``) too; bytes are one
    rank's, link headers apart.

    ``kernel_seconds``: coding and decoding. ``wire_seconds``: a collective was in flight (other work may have gone on
    meanwhile). ``exposed_seconds``: the backward pass had ended and waited. ``relative_error``: |x - C(x)| / |x| of the
    last good step by parameter, where x is the gradient plus the residual; None where nothing is fed back.

    ``review_seconds``: what controllers did between steps. ``elements`` by parameter; ``parameter_bytes``: what each
    would send alone, a header of some 24 bytes included; ``choices``: the density, bits or rank that a controller gave
    it.
    """

    reducer: str
    world: int
    steps: int
    bytes_sent: float
    bytes_dense: float
    kernel_seconds: float
    wire_seconds: float
    exposed_seconds: float
    state_bytes: int
    relative_error: Mapping[str, float | None]
    review_seconds: float = 0.0
    elements: Mapping[str, int] = field(default_factory=dict[str, int])
    parameter_bytes: Mapping[str, int] = field(default_factory=dict[str, int])
    choices: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def ratio(self) -> float:
        """Dense bytes over sent bytes."""
        return self.bytes_dense / self.bytes_sent if self.bytes_sent else float("inf")

    def as_dict(self) -> dict[str, Any]:
        """All fields and the ratio, ready for JSON."""
        return {**asdict(self), "ratio": self.ratio}

    def __str__(self) -> str:
        ratio = f"{self.ratio:.1f}x" if self.bytes_sent else "-"
        lines = [
            f"{self.reducer} on {self.world} rank{'s' * (self.world != 1)}, {self.steps} step{'s' * (self.steps != 1)}",
            f"  bytes sent per step  {self.bytes_sent:>14,.0f}   dense {self.bytes_dense:,.0f}   {ratio}",
            f"  seconds in kernels   {self.kernel_seconds:>14.6f}",
            f"  seconds on the wire  {self.wire_seconds:>14.6f}",
            f"  seconds exposed      {self.exposed_seconds:>14.6f}",
            f"  bytes of state       {self.state_bytes:>14,}",
        ]
        if self.choices:
            lines.append(f"  seconds in reviews   {self.review_seconds:>14.6f}")
        return "\n".join([*lines, *self._table()])

    def _table(self) -> list[str]:
        """The parameters, the largest first, where more is known of them than their names."""
        known = {n: e for n, e in self.relative_error.items() if e is not None}
        if not known and not self.choices:
            return []
        names = sorted(self.elements or known, key=lambda n: (-self.elements.get(n, 0), n))
        width = max(map(len, [*names[:SHOWN], "parameter"]))
        head = f"  {'parameter':<{width}}  {'elements':>12}  {'bytes':>11}  {'setting':>8}  {'error':>6}"
        lines = [head]
        for n in names[:SHOWN]:
            sent, chosen, error = self.parameter_bytes.get(n), self.choices.get(n), known.get(n)
            cells = (
                f"{self.elements[n]:,}" if n in self.elements else "-",
                "-" if sent is None else f"{sent:,}",
                "-" if chosen is None else f"{chosen:.4g}",
                "-" if error is None else f"{error:.4f}",
            )
            lines.append(f"  {n:<{width}}  {cells[0]:>12}  {cells[1]:>11}  {cells[2]:>8}  {cells[3]:>6}")
        rest = names[SHOWN:]
        if rest:
            numel, sent = sum(self.elements.get(n, 0) for n in rest), sum(self.parameter_bytes.get(n, 0) for n in rest)
            lines.append(f"  {f'and {len(rest)} more':<{width}}  {numel:>12,}  {sent:>11,}")
        return lines


def parameter_bytes(reducer: Reducer, shapes: Mapping[str, tuple[int, ...]], world: int) -> dict[str, int]:
    """What each parameter would send alone; without those that cannot be asked alone."""
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        with suppress(ValueError):
            found[name] = cost(reducer, Layout.of([(name, shape)]), world).sent
    return found


def relative_errors(flights: Sequence[Flight], store: Store) -> dict[str, float | None]:
    """|x - C(x)| / |x| by parameter, from the residual that a step left and the payload that it sent."""
    found: dict[str, float | None] = {}
    unsent = {(e.segment.name, e.segment.offset): e for e in store.entries() if e.name in ("residual", "velocity")}
    for flight in flights:
        layout, sent = flight.bucket.layout, flight.result.sent
        found.update((s.name, None) for s in layout.segments)
        held = [(s, unsent[s.name, s.offset]) for s in layout.segments if (s.name, s.offset) in unsent]
        if sent is None or not held:
            continue
        given = sent.dense(layout).flat
        for s, e in held:
            codec = e.slot.codec
            error = e.tensor if codec is None else coded.read(e.tensor, codec, s.numel, 0, s.numel)
            norm = float((error + given[s.start : s.stop]).square().sum()) ** 0.5
            found[s.name] = float(error.square().sum()) ** 0.5 / norm if norm > 0 else None
    return found
