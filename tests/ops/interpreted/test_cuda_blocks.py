"""What the CUDA kernels of the block formats do differently by block and width: blocks that a lane keeps, that it reads
again, that do not fill words; dithers of rows that begin inside a superblock and of those that do not."""

from __future__ import annotations

import pytest
import torch

from tests.ops.dense_case import OPS, Format, case, decode, encode, same
from tests.ops.sparse_case import using

SIZES = (1, 700, 4200)
FORMS = [
    *(Format("sign", block=block) for block in (16, 80, 1024, 1040, 2048)),
    *(Format("qsgd", bits=bits, stochastic=bits % 2 == 0, norm2=bits % 3 == 0) for bits in range(2, 9)),
    *(Format("qsgd", bits=3, stochastic=True, block=block) for block in (16, 80, 1024, 1040, 2048)),
    *(Format("qsgd", bits=bits, block=48) for bits in (2, 4, 5, 8)),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_blocks(form: Format) -> None:
    for aligned in (False, True):
        c = case(form, "nonfinite" if aligned else "normal", SIZES)
        if aligned:
            c.table[:, 4] = 128 * torch.arange(len(SIZES))
        else:
            c.table[:, 4] += 2**35 - 3
        expected, found = (encode(backend, form, c, 0.9, 1.1) for backend in ("reference", "cuda"))
        assert all(same(found[name], tensor) for name, tensor in expected.items())
    wires = torch.stack((expected["wire"], encode("reference", form, c)["wire"]))
    skip = torch.zeros(5, dtype=torch.uint8)
    expected, found = (decode(name, form, c, wires, c.add, 0.3, True, skip) for name in ("reference", "cuda"))
    assert same(found, expected)


def test_wires_where_words_and_sixteen_bytes_are_aligned() -> None:
    """The fast ways out: what other cases have at odd addresses."""
    for form in (Format("sign"), Format("qsgd"), Format("qsgd", bits=8), Format("qsgd", bits=5, stochastic=True)):
        table = torch.tensor([[0, 0, 4096, 0, 0, 5, 0, 0], [4096, 4096, 1000, form.section(4096), 4096, 5, 0, 1]])
        g = torch.Generator().manual_seed(1)
        x, add = torch.randn(5096, generator=g), torch.randn(5096, generator=g)
        nbytes = form.section(4096) + form.section(1000)
        c = case(form, sizes=(2, 2))._replace(table=table, x=x, add=add, nbytes=nbytes)
        results = []
        for backend in ("reference", "cuda"):
            left, wire, status = x.clone(), torch.zeros(nbytes, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)
            with using(backend):
                op = getattr(OPS, f"{form.name}_encode")
                op(left, add, wire, table, status, 1.0, 1.0, *form.encode_tail(c.gain, 3, 1))
            out = decode(backend, form, c, wire[None], add, 0.5, True, status)
            results.append((left, wire, status, out))
        assert all(same(a, b) for a, b in zip(*results, strict=True)), form
