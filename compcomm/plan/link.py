"""What a link does: a time per message and a rate, or both for every kind of collective where they were measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from . import units


class Speed(NamedTuple):
    """One kind of collective on this link: seconds per round, and payload bits per second of what a rank sends."""

    kind: str
    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Link:
    """The alpha-beta model: a message of b bytes takes ``latency + 8 b / bandwidth`` seconds.

    ``latency``: seconds per message, one way. ``bandwidth``: bits per second of every worker's link, each way (full
    duplex). ``speeds``: what was measured for a kind of collective, in place of these two; headers, the protocol and a
    library that does not fill the line are then in it. ``world``: among how many ranks; 0: given, not measured.

    Source: Hockney 1994; Thakur, Rabenseifner, Gropp 2005, section 3.

    >>> Link.of("1gbit", "50us")
    Link(latency=5e-05, bandwidth=1000000000.0, speeds=(), world=0)
    """

    latency: float
    bandwidth: float
    speeds: tuple[Speed, ...] = ()
    world: int = 0

    def __post_init__(self) -> None:
        units.seconds(self.latency)
        if not self.bandwidth > 0:
            raise ValueError(f"Link(bandwidth={self.bandwidth!r}): bits per second, a positive number.")

    @classmethod
    def of(cls, bandwidth: str | float, latency: str | float = 0.0) -> Link:
        """From texts (see ``units``); numbers are bits per second and seconds."""
        bits = units.bandwidth(bandwidth) if isinstance(bandwidth, str) else float(bandwidth)
        return cls(units.latency(latency), bits)

    def speed(self, kind: str) -> Speed:
        """How this kind of collective goes; where that was not measured, a maximum or a reduce-scatter like the sum, of
        which it is a part."""
        like = (kind, "AllReduce") if kind in ("AllReduceMax", "ReduceScatter") else (kind,)
        known = {s.kind: s for s in self.speeds}
        return next((known[k] for k in like if k in known), Speed(kind, self.latency, self.bandwidth))

    def at(self, bandwidth: float) -> Link:
        """The same link with another rate: what was measured keeps its latency and its share of the line."""
        share = bandwidth / self.bandwidth
        speeds = tuple(s._replace(bandwidth=s.bandwidth * share) for s in self.speeds)
        return Link(self.latency, bandwidth, speeds, self.world)

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        speeds = {s.kind: {"latency": s.latency, "bandwidth": s.bandwidth} for s in self.speeds}
        return {**asdict(self), "speeds": speeds}

    def __str__(self) -> str:
        text = f"{units.rate(self.bandwidth)} and {units.duration(self.latency)} per message"
        return f"{text}, measured between {self.world} ranks" if self.world else text
