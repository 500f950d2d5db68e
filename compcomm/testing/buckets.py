"""Per-tensor semantics: a bucket is a loop over its parameters, to the bit, and repeats itself exactly."""

from __future__ import annotations

import torch

from ..core.compressor import Compressor
from ..core.layout import Bucket, Layout, Segment
from ..core.packing import pack_shares
from ..core.random import Rng
from ..core.source import Source
from .errors import demand, same_bits
from .inputs import SIZES, coding, vectors
from .round_trip import accepts, trip

SEED = Rng(seed=5, step=8, rank=2)


def _scattered(c: Compressor) -> Layout:
    """Coded, exact and empty parameters with padding between them, in no order of size."""
    segments: list[Segment] = []
    start = 3
    for i, n in enumerate(n for n in (513, 1, 1000, 16, 300, 17, 70_001) if accepts(c, n)):
        segments.append(Segment(f"w{i}", (1, n), start, start + n))
        start += n + i % 3
        segments.append(Segment(f"b{i}", (i,), start, start + i))
        start += i
    segments.append(Segment("none", (0, 4), start, start))
    return Layout(segments, start + 5)


def _numbers(layout: Layout) -> torch.Tensor:
    return torch.randn(layout.numel, dtype=torch.float32, generator=torch.Generator().manual_seed(4))


def treats_a_bucket_as_a_loop(c: Compressor) -> None:
    """One call for a bucket gives the bytes, values and errors of one call per parameter; padding is not touched."""
    c = coding(c)
    layout = _scattered(c)
    flat = _numbers(layout)
    whole = Bucket(flat.clone(), layout)
    payload = c.encode_(whole, SEED)
    decoded = payload.dense(layout)
    covered = torch.zeros(layout.numel, dtype=torch.bool)
    for row in payload.packing.coded:
        s = row.segment
        t = trip(c, flat[s.start : s.stop], SEED, piece=s)
        cut = payload.wire[row.wire : row.wire + c.section(s.numel)]
        demand(torch.equal(cut, t.section), c, f"the bytes of {s.name} ({s.numel}) depend on the bucket.")
        demand(same_bits(decoded.flat[s.start : s.stop], t.value), c, f"{s.name} decodes differently in a bucket.")
        demand(same_bits(whole.flat[s.start : s.stop], t.error), c, f"the error of {s.name} depends on the bucket.")
        covered[s.start : s.stop] = True
    for row in payload.packing.exact:
        s = row.segment
        demand(torch.equal(decoded.view(s).reshape(-1), flat[s.start : s.stop]), c, f"{s.name} does not travel exact.")
        demand(not whole.view(s).any(), c, f"{s.name} travels exact and still leaves an error.")
        covered[s.start : s.stop] = True
    demand(torch.equal(whole.flat[~covered], flat[~covered]), c, "padding between segments is written.")
    demand(not decoded.flat[~covered].any(), c, "padding between segments is decoded.")


def needs_no_room_for_exact_segments(c: Compressor) -> None:
    """With ``add``, x may lack the exact segments: they go straight to the wire."""
    c = coding(c)
    layout = _scattered(c)
    held = layout.select(lambda s: not c.exact(s)).packed()
    flat = _numbers(layout)
    x = Bucket(torch.zeros(held.numel, dtype=torch.float32), held)
    payload = c.encode_(Source(x, Bucket(flat, layout)), SEED)
    whole = Bucket(flat.clone(), layout)
    other = c.encode_(whole, SEED)
    demand(same_bits(payload.dense(layout).flat, other.dense(layout).flat), c, "a partial x changes what is sent.")
    for s in held.segments:
        demand(same_bits(x.view(s), whole.view(layout.segments[_index(layout, s.name)])), c, f"error of {s.name}.")


def _index(layout: Layout, name: str) -> int:
    return next(i for i, s in enumerate(layout.segments) if s.name == name)


def splits_by_owner(c: Compressor) -> None:
    """Cut into one message per owner: every element has one owner, and each message stands alone."""
    c = coding(c)
    layout = Layout.of([("a", (1, n)) for n in (1000,) if accepts(c, n)] + [("b", (7,)), ("none", (0, 2))])
    for world in (1, 2, 3, 5):
        try:
            packing = pack_shares(c, layout, world)
        except ValueError:  # shares too small for a fixed k
            continue
        flat = vectors(layout.numel)["student-t"]
        x = Bucket(flat.clone(), layout)
        payload = c.encode_(x, SEED, packing=packing)
        value = payload.dense(layout).flat
        demand(same_bits(x.flat, flat - value), c, f"with {world} owners, x is not y - decode(payload).")
        owned = torch.zeros(layout.numel, dtype=torch.float32)
        for rank, message in enumerate(torch.split(payload.wire, list(packing.splits))):
            own = [r.segment for r in (*packing.exact, *packing.coded) if r.message == rank]
            for s in own:
                owned[s.start : s.stop] += 1
            again = Bucket(flat.clone(), Layout(own, layout.numel))
            part = c.encode_(again, SEED, packing=packing, message=rank)
            body = slice(packing.header, None)
            demand(torch.equal(part.wire[body], message[body]), c, f"message {rank} of {world} depends on the others.")
            out = part.dense(again.layout)
            alone = all(same_bits(out.flat[s.start : s.stop], value[s.start : s.stop]) for s in own)
            demand(alone, c, f"message {rank} of {world} decodes differently alone.")
            into = Bucket(torch.ones(layout.numel, dtype=torch.float32), layout)
            part.zero_(into)
            for s in own:
                into.flat[s.start : s.stop] = 1.0
            demand(into.flat.all(), c, f"zero_ of message {rank} of {world} clears what others own.")
        demand((owned == 1).all(), c, f"with {world} owners an element has none or two.")


def repeats_itself(c: Compressor) -> None:
    """Equal (seed, name, step, rank) give equal bytes; unbiased compressors draw anew for every step and name, and,
    where payloads are not summed, for every rank."""
    c = coding(c)
    for n in [n for n in SIZES if n > 200 and accepts(c, n)]:
        y = vectors(n)["gaussian"]
        first = trip(c, y, SEED)
        demand(torch.equal(first.section, trip(c, y, SEED).section), c, "does not repeat itself.")
        if not c.unbiased or c.omega(n) == 0:
            continue
        others = {"step": trip(c, y, SEED._replace(step=9)), "seed": trip(c, y, SEED._replace(seed=6))}
        others["name"] = trip(c, y, SEED, name="v")
        if not c.linear:
            others["rank"] = trip(c, y, SEED._replace(rank=3))
        for what, other in others.items():
            demand(not torch.equal(first.value, other.value), c, f"draws the same for another {what}: noise adds up.")
