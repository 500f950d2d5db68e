"""Declared properties: linear, unbiased, delta and omega, each with the evidence that would catch a lie.

Expectations are tested by sampling: many parameters of equal content, each with its own name, are independent draws.
Seeds are fixed, so a verdict does not change from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..compressors.unproven import Unproven
from ..core.compressor import Compressor
from ..core.layout import Bucket, Layout
from ..core.packing import pack
from ..core.random import Rng
from ..core.source import Source, Target
from .errors import ContractError, demand, same_bits
from .inputs import coding, vectors
from .round_trip import accepts, draws, trip

SIZES = (1, 2, 17, 300, 512, 700)
DRAWS = 128
Z = 5.0  # standard errors


def _inputs(c: Compressor, sizes: tuple[int, ...] = SIZES) -> Iterator[tuple[str, int, Tensor]]:
    for n in sizes:
        if accepts(c, n):
            for name, y in vectors(n).items():
                yield f"{name} of {n} elements", n, y


def _squared(a: Tensor) -> Tensor:
    return a.double().square().sum(-1)


def _is_random(c: Compressor, n: int) -> bool:
    sample = draws(c, vectors(n)["gaussian"], 32)
    return bool((sample != sample[0]).any())


def never_exceeds_delta_or_omega(c: Compressor) -> None:
    """E|x - C(x)|^2 <= (1 - delta)|x|^2, and <= omega |x|^2, on every input; delta in (0, 1], omega >= 0."""
    c = coding(c)
    drawn = {n for n in SIZES if accepts(c, n) and _is_random(c, n)}
    for what, n, y in _inputs(c):
        delta, omega = c.delta(n), c.omega(n)
        demand(delta is None or 0 < delta <= 1, c, f"delta({n}) = {delta} is not in (0, 1].")
        demand((omega is not None) == c.unbiased, c, f"unbiased is {c.unbiased}, and omega({n}) = {omega}.")
        demand(omega is None or omega >= 0, c, f"omega({n}) = {omega}.")
        if delta is None and omega is None:
            continue
        error = _squared(draws(c, y, DRAWS if n in drawn else 2) - y)
        noise = float(error.std()) * Z / len(error) ** 0.5
        size = float(_squared(y))
        for name, bound in (("delta", None if delta is None else 1 - delta), ("omega", omega)):
            if bound is not None:
                found = (float(error.mean()) - noise) / max(size, 1e-300)
                kept = found <= bound * (1 + 1e-6) + 1e-6
                demand(kept, c, f"{name}({n}): |x - C(x)|^2 is {found:.6g} |x|^2 on {what}, over {bound:.6g}.")


def _bias(c: Compressor, y: Tensor, count: int) -> tuple[float, str]:
    """How many standard errors (plus rounding) the mean of C(y) is away from y, in the worst of a few directions."""
    sample = draws(c, y, count).double()
    y = y.double()
    g = torch.Generator().manual_seed(1)
    directions = {"the sum": torch.ones_like(y), "x itself": y, "the signs": y.sign()}
    directions |= {f"random signs {i}": torch.randint(0, 2, y.shape, generator=g).double() * 2 - 1 for i in range(3)}
    if not bool((sample != sample[0]).any()):
        directions["the error"] = (y - sample[0]).sign()
    worst, where = 0.0, ""
    for name, v in directions.items():
        along = sample @ v
        rounding = 1e-6 * float((y.abs() * v.abs()).sum()) + 1e-40
        z = abs(float(along.mean() - y @ v)) / (float(along.std()) / count**0.5 + rounding)
        worst, where = max((worst, where), (z, name))
    return worst, where


def is_unbiased_as_declared(c: Compressor) -> None:
    """Where ``unbiased``: the mean of 1000 draws is x within 5 standard errors, in several directions. Where not: it is
    seen to be biased on some input (unless nothing is lost at all)."""
    c = coding(c)
    found = False
    for what, n, y in _inputs(c, (2, 300, 700)):
        z, where = _bias(c, y, 1000 if c.unbiased else 200)
        if c.unbiased and z >= Z:  # a rare event that did not happen, or a bias? A bias stands out more with more draws
            z, where = _bias(c, y, 10_000)
        found |= z > 2 * Z
        demand(not c.unbiased or z < Z, c, f"E C(x) is not x: off by {z:.1f} standard errors along {where} on {what}.")
        if found or (not c.unbiased and c.delta(n) == 1.0):
            return
    demand(c.unbiased or found, c, "is declared biased and was not seen to be: declare unbiased, and omega.")


def _sums(c: Compressor, n: int, a: Tensor, b: Tensor, rng: Rng) -> tuple[Tensor, Tensor, float]:
    """decode(payload(a) + payload(b)), C(a) + C(b), and the unit roundoff of the payloads' numbers."""
    layout = Layout.of([("w", (1, n))])
    packing = pack(c, layout)
    first, second = trip(c, a, rng), trip(c, b, rng._replace(rank=rng.rank + 1))
    wire = torch.zeros(packing.nbytes, dtype=torch.uint8)
    body = wire[packing.header :]
    body.copy_(first.payload.wire[packing.header :])
    body.view(c.dtype).add_(second.payload.wire[packing.header :].view(c.dtype))
    out = Bucket(torch.zeros(n, dtype=torch.float32), layout)
    c.decode_(wire.unsqueeze(0), out, rng, packing)
    return out.flat, first.value + second.value, torch.finfo(c.dtype).eps


def is_linear_as_declared(c: Compressor) -> None:
    """Where ``linear``: payloads of two ranks, summed as ``dtype``, decode to the sum of what either decodes to, and to
    C(a + b), within rounding. Where not: some a and b have C(a) + C(b) unlike C(a + b)."""
    c = coding(c)
    rng = Rng(seed=3, step=1)
    sizes = [n for n in SIZES if accepts(c, n)]
    for n in sizes:
        a, b = vectors(n, 1)["gaussian"], vectors(n, 2)["gaussian"] * 3
        if c.linear:
            total, apart, eps = _sums(c, n, a, b, rng)
            gain = max(1.0, c.gain(n))
            largest = gain * (a.abs() + b.abs()).max() + 2 * apart.abs().max()  # transforms mix the elements
            bound = 2 * eps * largest
            demand(((total - apart).abs() <= bound).all(), c, f"payloads of {n} elements do not decode to their sum.")
            joint = trip(c, a + b, rng).value
            demand(((joint - apart).abs() <= bound).all(), c, f"C(a) + C(b) is not C(a + b) on {n} elements.")
        else:
            apart = trip(c, a, rng).value + trip(c, b, rng).value
            joint = trip(c, a + b, rng).value
            if float(_squared(joint - apart)) > 1e-6 * float(_squared(joint)):
                return
            if c.delta(n) == 1.0 and n == sizes[-1]:
                return
    if not c.linear:
        raise ContractError(f"{c!r}: is declared not linear, and C(a) + C(b) is C(a + b) on every pair that was tried.")


def settles_what_feedback_asks(c: Compressor) -> None:
    """``contractive()`` gives a compressor with delta > 0 for every size, or refuses, naming the reason and a cure.
    ``Unproven`` alone, which says so, passes without a delta."""
    try:
        inner = c.contractive()
    except ValueError as refusal:
        demand(c.delta(1 << 20) is None and not c.unbiased, c, "refuses feedback without need.")
        demand(repr(c) in str(refusal) and "Use" in str(refusal), c, "refuses feedback and names no cure.")
        return
    if isinstance(c, Unproven):
        demand(inner is c, c, f"runs under feedback as {inner!r}.")
        return
    for n in [n for n in SIZES if accepts(coding(c), n)]:
        delta = inner.delta(n)
        demand(delta is not None and delta > 0, c, f"runs under feedback as {inner!r}, whose delta({n}) is {delta}.")


def keeps_rows_of_zeros(c: Compressor) -> None:
    """Rows of zeros are received as zeros, and nothing is left of them; single zeros too, where it says that it keeps
    them. Runs with other seeds go by turns through the same layout."""
    c = coding(c)
    shapes = [(n, s) for n, s in (("w", (24, 40)), ("v", (7, 9)), ("u", (2, 600))) if accepts(c, s[0] * s[1])]
    layout = Layout.of(shapes)
    y = torch.randn(layout.numel, generator=torch.Generator().manual_seed(3), dtype=torch.float32) + 0.5
    views = Bucket(y, layout).views()
    views["w"][3:7] = views["w"][23] = 0.0
    if "v" in views:
        views["v"][0] = 0.0
    rows = y == 0
    y[::3] = 0.0
    for add, seed in ((False, 5), (True, 5), (False, 6)):
        x = Bucket(torch.zeros_like(y) if add else y.clone(), layout)
        payload = c.encode_(Source(x, Bucket(y, layout) if add else None), Rng(seed, 1, 0))
        found = payload.dense(layout).flat
        demand(not found[rows].any(), c, f"a row of zeros comes as {found[rows].abs().max():.3g}.")
        demand(not x.flat[rows].any(), c, "something is left of a row of zeros.")
        demand(same_bits(x.flat, y - found), c, f"x is not y - decode(payload) where rows are zero, with seed {seed}.")
        both = torch.zeros_like(y)
        wires = payload.wire.repeat(2, 1)
        c.decode_(wires, Target(Bucket(both, layout), 0.5), payload.rng, payload.packing)
        demand(torch.equal(both, found), c, "two equal messages with rows of zeros are not their mean.")
    demand(not c.keeps_zeros or not found[y == 0].any(), c, "keeps_zeros is True, and zeros are moved.")
