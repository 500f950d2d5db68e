"""Cases of compressors: the sections of some messages, and the decoder that reads them together."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from compcomm.core.compressor import Compressor, Payload
from compcomm.core.layout import Bucket, Layout
from compcomm.core.packing import Packing, pack
from compcomm.core.random import Rng
from compcomm.core.source import Target
from compcomm.testing.inputs import coding, vectors
from compcomm.testing.round_trip import accepts
from tests.fuzz.damage import damage
from tests.fuzz.outcome import Failure, agree, implementations, observe

SIZES = (1, 16, 17, 100, 513, 1000, 3000)
LARGE = 70_000  # more than one block of 65,536
GUARD = 64
KINDS = ("gaussian", "student-t", "1-sparse", "constant", "scales", "one over the worst level of 7")


def case(described: Compressor, random: Random) -> str:
    """One damaged set of messages; says what it was. Failure where somebody is hurt by it."""
    c = coding(described)
    sizes = [n for n in random.choices((*SIZES, *(LARGE,) * (random.random() < 0.1)), k=3) if accepts(c, n)]
    layout = Layout.of([*((f"w{i}", (1, n)) for i, n in enumerate(sizes)), ("b", (5,))])
    packing, count = pack(c, layout), random.randint(1, 3)
    sent = [_message(c, layout, packing, random) for _ in range(count)]
    flat = torch.cat([payload.wire for payload in sent])
    places = [m * packing.nbytes + at for m in range(count) for at in (0, *(row.wire for row in packing.coded))]
    said = f"{c!r}, {count} messages of {sizes}: " + damage(flat.numpy(), places, random)
    wires, width = flat.view(count, -1), packing.nbytes
    if random.random() < 0.1:
        width -= random.randint(1, min(64, width))
        said += f", all cut to {width} bytes"
    skip = torch.tensor([random.random() < 0.1 for _ in range(packing.count)], dtype=torch.uint8)
    rng, accumulate, clear = Rng(5, 7, 1), random.random() < 0.5, c.sparse and random.random() < 0.2
    snug = random.random() < 0.5  # for the address sanitizer: nothing behind the last byte

    def read(fill: int) -> list[Tensor]:
        room = _room(wires[:, :width], fill, snug)
        before, kept = room.clone(), skip.clone()
        around = torch.full((layout.numel + 2 * GUARD,), 7.0)
        out = Bucket(around[GUARD:-GUARD], layout)
        try:
            if clear:
                Payload(c, packing, room[0], torch.zeros(0), rng).zero_(out)
            else:
                c.decode_(room, Target(out, 0.5, accumulate), rng, packing, skip=kept)
        finally:
            if (torch.cat((around[:GUARD], around[-GUARD:])) != 7.0).any():
                raise Failure("a byte beside the result was written.")
            if not torch.equal(room, before) or not torch.equal(kept, skip):
                raise Failure("a decoder wrote into the message.")
        return [out.flat]

    try:
        found = {name: observe(name, lambda: read(0)) for name in implementations()}
        found |= {f"{name}, other bytes beside": observe(name, lambda: read(255)) for name in list(found)[1:]}
        agree(found)
    except Failure as failure:
        raise Failure(f"{said}: {failure}") from failure
    return said


def _message(c: Compressor, layout: Layout, packing: Packing, random: Random) -> Payload:
    parts = [vectors(s.numel, random.randrange(1000))[random.choice(KINDS)] for s in layout.segments]
    return c.encode_(Bucket(torch.cat(parts), layout), Rng(5, 7, 1), packing=packing)


def _room(wires: Tensor, fill: int, snug: bool) -> Tensor:
    """The messages in memory of their own, with other bytes between and around them or nothing at all."""
    if snug:
        return wires.clone(memory_format=torch.contiguous_format)
    count, width = wires.shape
    room = torch.full((count + 2, width + GUARD), fill, dtype=torch.uint8)
    room[1:-1, :width] = wires
    return room[1:-1, :width]
