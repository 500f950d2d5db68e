"""What the tests of the dense formats share: the formats, tables with gaps, poisoned buffers, calls of one backend."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from tests.ops.formats import Coded, discovered
from tests.ops.sparse_case import make, using

OPS = torch.ops.compcomm
SIZES = (0, 1, 15, 16, 17, 511, 512, 513, 4099)
GAP = 3  # unused elements around each row; the wire has gaps of twice as many words


class Format(NamedTuple):
    """One configuration of one op pair."""

    name: str
    block: int = 512
    bits: int = 4
    norm2: bool = False
    stochastic: bool = False
    flag: bool = False  # cast: float16; sign: kind 1, l2
    levels: int = 0

    @property
    def top(self) -> int:
        return self.levels or 2 ** (self.bits - 1) - 1

    def section(self, numel: int) -> int:
        blocks, pad = -(-numel // self.block), lambda n: -(-n // 4) * 4
        return {
            "dense": 4 * numel,
            "cast": pad(2 * numel),
            "sign": 4 * blocks + pad(-(-numel // 8)),
            "qsgd": 4 * blocks + pad(-(-numel * self.bits // 8)),
        }[self.name]

    def encode_tail(self, gain: Tensor, step: int, rank: int) -> tuple[object, ...]:
        if self.name == "qsgd":
            return (gain, self.bits, self.top, self.norm2, self.stochastic, self.block, step, rank)
        return {"dense": (), "cast": (self.flag,), "sign": (int(self.flag), self.block)}[self.name]

    def decode_tail(self) -> tuple[object, ...]:
        tails = {"dense": (), "cast": (self.flag,), "sign": (self.block,), "qsgd": (self.bits, self.top, self.block)}
        return tails[self.name]


FORMATS = [
    Format("dense"),
    *(Format("cast", flag=half) for half in (False, True)),
    *(Format("sign", flag=l2) for l2 in (False, True)),
    *(
        Format("qsgd", bits=bits, norm2=norm2, stochastic=stochastic)
        for bits in range(2, 9)
        for norm2 in (False, True)
        for stochastic in (False, True)
    ),
    Format("sign", block=16),
    Format("sign", block=2048),
    Format("qsgd", block=16, stochastic=True),
    Format("qsgd", block=2048, stochastic=True, bits=5),
    Format("qsgd", block=48, stochastic=True, bits=3),
    Format("qsgd", bits=8, levels=5, norm2=True),
    *discovered(),
]
Form = Format | Coded


class Case(NamedTuple):
    """One call's inputs. Row i with i % 4 == 2 has no ``add``; offsets are odd; rows 0 and 5 share a status entry."""

    table: Tensor
    x: Tensor
    add: Tensor
    gain: Tensor
    nbytes: int


def case(form: Form, kind: str = "normal", sizes: tuple[int, ...] = SIZES, seed: int = 0) -> Case:
    lines: list[list[int]] = []
    at, byte = GAP, 4
    for i, n in enumerate(sizes):
        lines.append([at, -1 if i % 4 == 2 else at + 1, n, byte, 7 * i, 0x1234567 * (i + 1) - 2**62, 0, i % 5])
        at += n + GAP
        byte += form.section(n) + 8 * GAP
    gain = torch.linspace(0.5, 1.0, len(sizes)) if len(sizes) > 1 else torch.ones(len(sizes))
    residual = make(kind, at + 1, seed) if kind != "nonfinite" else make("normal", at + 1, seed)
    return Case(torch.tensor(lines), residual, make(kind, at + 1, seed + 1), gain, byte)


def encode(
    backend: str,
    form: Form,
    c: Case,
    decay: float = 1.0,
    add_scale: float = 1.0,
    add: bool = True,
    step: int = 3,
    rank: int = 1,
) -> dict[str, Tensor]:
    """x, wire and status after the call; the wire is poisoned before it and begins at an odd address."""
    found = {
        "x": c.x.clone(),
        "wire": torch.full((c.nbytes + 1,), 0xA5, dtype=torch.uint8)[1:],
        "status": torch.tensor([4, 0, 0, 0, 2, 0], dtype=torch.uint8),
    }
    with using(backend):
        op = getattr(OPS, f"{form.name}_encode")
        tail = form.encode_tail(c.gain, step, rank)
        op(found["x"], c.add if add else None, found["wire"], c.table, found["status"], decay, add_scale, *tail)
    return found


def decode(
    backend: str, form: Form, c: Case, wires: Tensor, out: Tensor, scale: float, accumulate: bool, skip: Tensor
) -> Tensor:
    """``out`` after the call (a copy of the given one)."""
    out = out.clone()
    with using(backend):
        getattr(OPS, f"{form.name}_decode")(wires, c.table, skip, out, scale, accumulate, *form.decode_tail())
    return out


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def gaps(starts: list[tuple[int, int]], total: int) -> Tensor:
    """A mask of what lies in no (start, count)."""
    mask = torch.ones(total, dtype=torch.bool)
    for start, count in starts:
        mask[start : start + count] = False
    for (a, n), (b, _) in pairwise(starts):
        assert a + n < b, "the rows of a case must have gaps between them"
    return mask
