"""Payloads: as long as declared, decoded to what was sent, and honest about what was not."""

from __future__ import annotations

import torch

from ..core.compressor import Compressor
from ..core.layout import Bucket, Layout, Segment
from ..core.packing import pack
from ..core.random import Rng
from ..core.source import Source, Target
from .errors import alike, demand, demand_of_all, same_bits
from .inputs import SIZES, coding, segment, vectors
from .round_trip import accepts, nothing_skipped, trip, trips

SEED = Rng(seed=11, step=3, rank=1)


def sends_the_bytes_it_declares(c: Compressor) -> None:
    """A message is its header and ``section(numel)`` bytes; all of them are written, and no byte beside them."""
    c = coding(c)
    for n in filter(lambda n: accepts(c, n), SIZES):
        layout = Layout.of([("w", (1, n))])
        packing = pack(c, layout)
        size = c.section(n)
        demand(size >= 0, c, f"section({n}) = {size} bytes.")
        if type(c).encode_rows is Compressor.encode_rows:
            coded = c.encode(vectors(n)["gaussian"], segment(n), SEED)
            given = coded.numel() * coded.element_size()
            demand(given == size, c, f"section({n}) says {size} bytes, encode gave {given}.")
        demand(packing.nbytes == packing.header + -(-size // 4) * 4, c, f"the message of {n} elements is not as long.")
        y = vectors(n)["gaussian"]
        wires = [torch.full((packing.nbytes + 64,), fill, dtype=torch.uint8) for fill in (0xA5, 0x5A)]
        for wire in wires:
            c.encode_(Bucket(y.clone(), layout), SEED, wire=wire[: packing.nbytes], packing=packing)
        body = slice(packing.header, packing.header + size)
        demand(torch.equal(wires[0][body], wires[1][body]), c, f"not every byte of section({n}) is written.")
        for wire, fill in zip(wires, (0xA5, 0x5A), strict=True):
            outside = torch.cat((wire[: packing.header], wire[packing.nbytes :]))
            demand((outside == fill).all(), c, f"bytes outside section({n}) are written.")


def keeps_what_it_did_not_send(c: Compressor) -> None:
    """x holds exactly y - decode(encode(y)), whatever the input; zeros give zero; nothing becomes NaN."""
    c = coding(c)
    for n in filter(lambda n: accepts(c, n), SIZES):
        tiny = torch.full((n,), 1e-41, dtype=torch.float32)
        given = {"zeros": torch.zeros_like(tiny), "denormals": tiny, "negative denormals": -tiny, **vectors(n)}
        for kinds in ({"huge": given.pop("huge")}, given):  # what a 16-bit number cannot hold may be reported
            names, ys = list(kinds), torch.stack(list(kinds.values()))
            t = trips(c, ys, SEED)
            demand_of_all(t.value.isfinite(), names, c, f"decodes {{}} of {n} elements to NaN or infinity.")
            left = f"x is not y - decode(payload) on {{}} of {n} elements."
            demand_of_all(alike(t.error, ys - t.value), names, c, left)
            demand("huge" in kinds or t.payload.status[0] == 0, c, f"calls {n} finite elements non-finite.")
            fitting = (t.payload.status[1:] != 0) == (ys != 0).any(1)
            demand_of_all(fitting, names, c, "the zero flag is wrong on {}.")
            demand("huge" in kinds or not t.value[0].any(), c, "decodes zeros to something else.")


def adds_the_gradient_on_the_way(c: Compressor) -> None:
    """With ``add``: y = decay*x + add_scale*add, rounded after each operation; ``add`` is only read."""
    c = coding(c)
    for n in filter(lambda n: accepts(c, n), (1, 17, 513, 1000)):
        layout, at = Layout.of([("w", (1, n))]), Layout([Segment("w", (1, n), 5, 5 + n)], n + 8)
        x, g = vectors(n, 1)["gaussian"], vectors(n, 2)["student-t"]
        for decay, scale in ((1.0, 1.0), (0.9, 0.1), (1.0, 2.0**-16), (0.0, 1.0)):
            flat = torch.zeros(n + 8, dtype=torch.float32)
            flat[5 : 5 + n] = g
            held, given = Bucket(x.clone(), layout), flat.clone()
            payload = c.encode_(Source(held, Bucket(given, at), decay, scale), SEED)
            y = x * decay + g * scale
            alone = trip(c, y, SEED)
            demand(same_bits(held.flat, alone.error), c, f"encode(x, add, {decay=}, {scale=}) is not encode(y).")
            demand(same_bits(payload.dense(layout).flat, alone.value), c, f"{decay=}, {scale=} changes what is sent.")
            demand(torch.equal(given, flat), c, "add was written to.")


def keeps_non_finite_values_out(c: Compressor) -> None:
    """NaN and infinities are flagged, never sent and never kept; their neighbours are not lost."""
    c = coding(c)
    for n in filter(lambda n: accepts(c, n), (1, 17, 600)):
        for bad in (float("nan"), float("inf"), -float("inf")):
            g = vectors(n)["gaussian"]
            g[n // 2] = bad
            layout = Layout.of([("w", (1, n))])
            x = vectors(n, 1)["gaussian"]
            added, alone = Bucket(x.clone(), layout), Bucket(g.clone(), layout)
            clean = {"add": torch.where(g.isfinite(), x + g, x), "x": torch.where(g.isfinite(), g, 0.0)}
            sent = {"add": c.encode_(Source(added, Bucket(g, layout)), SEED), "x": c.encode_(alone, SEED)}
            for name, held in (("add", added), ("x", alone)):
                payload, value = sent[name], sent[name].dense(layout).flat
                demand(payload.status[0] != 0, c, f"{bad} in {name} is not flagged.")
                demand(payload.status[1] != 0, c, f"{bad} in {name} counts as a zero gradient.")
                demand(value.isfinite().all(), c, f"{bad} in {name} crosses the wire.")
                demand(same_bits(held.flat, clean[name] - value), c, f"{bad} in {name} stays in x, or spoils the rest.")
        huge = torch.full((n,), torch.finfo(torch.float32).max, dtype=torch.float32)
        for y in (huge, -huge, huge * (1 - 2 * (torch.arange(n, dtype=torch.int64) % 2))):
            t = trip(c, y, SEED)
            demand(t.value.isfinite().all() and t.error.isfinite().all(), c, "overflows on the largest finite numbers.")


def decodes_many_at_once(c: Compressor) -> None:
    """``decode_`` of W messages is scale times their sum (accumulating or not), and passes over what is skipped."""
    c = coding(c)
    for n in filter(lambda n: accepts(c, n), (17, 513, 1000)):
        layout = Layout.of([("a", (1, n)), ("b", (1, n)), ("c", (3,))])
        for world in (1, 2, 5):
            g = torch.Generator().manual_seed(n)
            parts = torch.randn(world, layout.numel, dtype=torch.float32, generator=g).unbind()
            sent = [c.encode_(Bucket(p.clone(), layout), SEED) for p in parts]
            wires = torch.stack([p.wire for p in sent])
            total = torch.stack([p.dense(layout).flat for p in sent]).double()
            bound = total.abs().sum(0).max() * world * 2.0**-22 + 1e-30  # the largest's: transforms mix elements
            for accumulate in (False, True):
                out = Bucket(torch.full((layout.numel,), 7.0, dtype=torch.float32), layout)
                c.decode_(wires, Target(out, 0.3, accumulate), SEED, sent[0].packing)
                due = total.sum(0) * 0.3 + 7.0 * accumulate
                demand(((out.flat - due).abs() <= bound + 2e-6 * accumulate).all(), c, f"decode_ of {world} is no sum.")
                skip = nothing_skipped(sent[0])
                skip[0] = skip[2] = 1
                again = Bucket(torch.full((layout.numel,), 7.0, dtype=torch.float32), layout)
                c.decode_(wires, Target(again, 0.3, accumulate), SEED, sent[0].packing, skip=skip)
                views = again.views()
                for name in ("a", "c"):
                    demand((views[name] == 7.0 * accumulate).all(), c, f"skip does not silence ({accumulate=}).")
                demand(same_bits(views["b"], out.views()["b"]), c, "skip of one segment changes another.")


def can_clear_what_it_sent(c: Compressor) -> None:
    """``payload.zero_`` clears every element that was sent: all, or for sparse compressors those, at most ``kept``."""
    c = coding(c)
    for n in filter(lambda n: accepts(c, n), (1, 17, 1000)):
        t = trip(c, vectors(n)["gaussian"], SEED)
        into = Bucket(torch.ones(n, dtype=torch.float32), Layout.of([("w", (1, n))]))
        t.payload.zero_(into)
        cleared = int((into.flat == 0).sum())
        demand(not into.flat[t.value != 0].any(), c, "zero_ leaves an element that was sent.")
        due = int((t.value != 0).sum()) if c.sparse else n
        demand(cleared == due, c, f"zero_ clears {cleared} of {n} elements where {due} were sent.")
        demand(not c.sparse or due <= c.kept(n), c, f"{due} of {n} elements are sent where kept says {c.kept(n)}.")
        demand(((into.flat == 0) | (into.flat == 1)).all(), c, "zero_ writes something else than zero.")
        held = Bucket(torch.ones(n, dtype=torch.float32), into.layout)
        t.payload.zero_(held, skip=1 - nothing_skipped(t.payload))
        demand((held.flat == 1).all(), c, "zero_ clears a segment that is to be skipped.")
