"""What an attachment has done so far, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .. import coded
from ..store import Store
from .flight import Flight


@dataclass(frozen=True)
class Report:
    """Means per step since attach or load_state_dict, exact steps (warm-up, ``enabled = False``) too; bytes are one
    rank's, link headers apart.

    ``kernel_seconds``: coding and decoding. ``wire_seconds``: a collective was in flight (other work may have gone on
    meanwhile). ``exposed_seconds``: the backward pass had ended and waited. ``relative_error``: |x - C(x)| / |x| of the
    last good step by parameter, where x is the gradient plus the residual; None where nothing is fed back.
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
        known = {n: e for n, e in self.relative_error.items() if e is not None}
        if known:
            width = max(map(len, known))
            lines += ["  relative error", *(f"    {n:<{width}}  {e:.4f}" for n, e in known.items())]
        return "\n".join(lines)


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
