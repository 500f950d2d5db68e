"""Backends: the plain PyTorch reference is the truth, and the native kernels answer to it bit for bit."""

from __future__ import annotations

import torch

from .. import ops
from ..core.compressor import Compressor
from ..core.layout import Bucket, Layout
from ..core.random import Rng
from ..core.source import Source, Target
from .errors import demand, same_bits
from .inputs import coding, rows, vectors
from .round_trip import accepts


def gives_the_same_bits_on_every_backend(c: Compressor) -> None:
    """Bytes, values, errors and flags of every backend are those of the reference."""
    if not ops.native.available():
        return
    c = coding(c)
    rng = Rng(seed=2, step=70_000, rank=3)
    for n in [n for n in (1, 17, 300, 513, 3000) if accepts(c, n)]:
        every, stride = rows(n), 3 if n > 200 else 1
        names, g = every[0][::stride], every[1][::stride]
        x = vectors(n, 4)["lognormal"] * g.abs().mean(1, keepdim=True)
        layout = Layout.of([*((name, (1, n)) for name in names), ("b", (5,))])
        exact = torch.arange(5, dtype=torch.float32)
        results: list[tuple[torch.Tensor, ...]] = []
        for backend in ("reference", "native"):
            with ops.backend(backend):
                held = Bucket(torch.cat((x.reshape(-1), exact)), layout)
                sent = c.encode_(Source(held, Bucket(torch.cat((g.reshape(-1), exact)), layout), 0.75, 0.3), rng)
                out = sent.dense(layout)
                c.decode_(torch.stack((sent.wire, sent.wire)), Target(out, 0.7, True), rng, sent.packing)
            results.append((sent.wire, held.flat, out.flat, sent.status))
        for what, truth, found in zip(("bytes", "error", "value", "status"), *results, strict=True):
            wrong = f"native {what} is wrong on {len(names)} parameters of {n} elements"
            demand(same_bits(truth, found), c, f"{wrong}, from place {int((truth != found).int().argmax())} on.")
