"""What a reducer will do, said in one line before the first step."""

from __future__ import annotations

from ..core.layout import Layout
from ..core.reducer import Reducer
from ..engine.breakeven import breakeven
from ..transports.dry_run import cost, plan


def announce(
    reducer: Reducer, everything: Layout, world: int, what: str = "compcomm", *, rows: bool = False, kind: str = "rank",
    per: str = "rank", ring: int = 0,
) -> str:  # fmt: skip
    """What a reducer will do, in one line. ``rows``: ``everything`` is made of one row per rank. ``kind``: what there
    are ``world`` of; ``per``: whose bytes are told. ``ring``: of nodes, how many ranks there are in all; bytes are
    compared with those of one ring through these."""
    text = f"{what}: {reducer!r} {'on' if kind == 'rank' else 'between'} {world} {kind}{'s' * (world != 1)}"
    if world == 1:
        return f"{text}: nothing to send"
    found = breakeven(reducer, everything, world, rows=rows)
    more = sum(p.sent for p in plan(reducer, everything, world, step=0, rows=rows)) - found.sent  # in the first step
    if ring:  # each rank of a node sends a part, with a header of its own
        sent, dense, _ = cost(reducer, everything, ring, ranks_per_node=ring // world)
        found = found._replace(sent=sent, dense=dense)
    most, least = ("at most ", "at least ") if reducer.traits.variable else ("", "")
    of = " less than a reduce-scatter in fp32" if rows else " less than DDP's ring" if ring else ""
    text += f": {_size(found.dense)} -> {most}{_size(found.sent)} per {per} and step ({least}{found.ratio:.1f}x{of})"
    if abs(more) > 0.02 * found.sent:
        text += f", {_size(found.sent + more)} in the first step"
    if found.seconds and found.sent >= found.dense:
        text += ", which saves nothing: use Exact()"
    elif found.seconds:
        text += f", should pay below {_rate(found.bits_per_second)} (kernels {found.seconds * 1e3:.1f} ms per step)"
    return text


def held(nbytes: int) -> str:
    """What a rank remembers, at the end of such a line."""
    return f"; memory {_size(nbytes)} per rank" if nbytes else "; no memory"


def within_nodes(compressor: object) -> str:
    """How gradients travel among the ranks of a node, at the end of such a line."""
    return f"; inside a node {'exact' if compressor is None else f'by {compressor!r}'}"


def gathered(weights: object, sent: int, dense: int) -> str:
    """What coded weights are, at the end of such a line."""
    return f"; weights by {weights!r}: {_size(dense)} -> {_size(sent)} per rank and pass"


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e6:.2f} MB" if nbytes >= 1e5 else f"{nbytes / 1e3:.2f} kB"


def _rate(bits: float) -> str:
    return f"{bits / 1e9:.1f} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.1f} Mbit/s"
