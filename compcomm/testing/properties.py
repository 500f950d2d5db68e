"""Declared properties: linear, unbiased, delta and omega, each with the evidence that would catch a lie.

Expectations are tested by sampling: many parameters of equal content, each with its own name, are independent draws.
Seeds are fixed, so a verdict does not change from run to run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..compressors.contractive import contractive
from ..compressors.unproven import Unproven
from ..core.compressor import Compressor
from ..core.layout import Bucket, Layout
from ..core.packing import pack
from ..core.random import Rng
from ..core.source import Source, Target
from .errors import ContractError, demand, same_bits
from .inputs import coding, vectors
from .round_trip import accepts, errors, trip

SIZES = (1, 2, 17, 300, 512, 700)
DRAWS = 128
Z = 5.0  # standard errors


def _squared(a: Tensor) -> Tensor:
    return a.double().square().sum(-1)


def _is_random(c: Compressor, n: int) -> bool:
    left = errors(c, vectors(n)["gaussian"].expand(16, -1))
    return bool((left != left[0]).any())


def _asked(c: Compressor, n: int) -> dict[str, Tensor]:
    """What random compressors are asked many times: every third vector where they go from one parameter to the next."""
    plain = type(c).encode_rows is Compressor.encode_rows
    return dict(list(vectors(n).items())[:: 3 if plain else 1])


def never_exceeds_delta_or_omega(c: Compressor) -> None:
    """E|x - C(x)|^2 <= (1 - delta)|x|^2, and <= omega |x|^2, on every input; delta in (0, 1], omega >= 0."""
    c = coding(c)
    for n in [n for n in SIZES if accepts(c, n)]:
        delta, omega = c.delta(n), c.omega(n)
        demand(delta is None or 0 < delta <= 1, c, f"delta({n}) = {delta} is not in (0, 1].")
        demand((omega is not None) == c.unbiased, c, f"unbiased is {c.unbiased}, and omega({n}) = {omega}.")
        demand(omega is None or omega >= 0, c, f"omega({n}) = {omega}.")
        if delta is None and omega is None:
            continue
        random = _is_random(c, n)
        asked = _asked(c, n) if random else vectors(n)
        names, ys = list(asked), torch.stack(list(asked.values()))
        if random:
            error = torch.stack([_squared(errors(c, y.expand(DRAWS, -1))) for y in ys], 1)
        else:
            error = _squared(errors(c, ys))[None]
        noise = error.std(0, correction=0) * Z / len(error) ** 0.5
        lost = (error.mean(0) - noise) / _squared(ys).clamp_min(1e-300)
        for name, bound in (("delta", None if delta is None else 1 - delta), ("omega", omega)):
            if bound is not None:
                most, worst = (float(v) for v in lost.max(0))
                over = f"{name}({n}): |x - C(x)|^2 is {most:.6g} |x|^2 on {names[int(worst)]}, over {bound:.6g}."
                demand(most <= bound * (1 + 1e-6) + 1e-6, c, over)


def _bias(c: Compressor, y: Tensor, count: int) -> float:
    """How many standard errors (plus rounding) the mean of C(y) is away from y, along the direction where it is most:
    the sum, y itself, its signs, random signs and, of what is not random, the error."""
    left, y = errors(c, y.expand(count, -1)), y.double()
    signs = torch.randint(0, 2, (3, len(y)), generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    fixed = not bool((left != left[0]).any())
    directions = torch.stack((torch.ones_like(y), y, y.sign(), *signs, *([left[0].double().sign()] if fixed else [])))
    off = left.double() @ directions.T
    rounding = 1e-6 * (directions.abs() @ y.abs()) + 1e-40
    return float((off.mean(0).abs() / (off.std(0) / count**0.5 + rounding)).max())


def is_unbiased_as_declared(c: Compressor) -> None:
    """Where ``unbiased``: the mean of 1000 draws is x within 5 standard errors, in several directions. Where not: it is
    seen to be biased on some input (unless nothing is lost at all)."""
    c = coding(c)
    for n in [n for n in (2, 700) if accepts(c, n)]:
        for name, y in _asked(c, n).items():
            z = _bias(c, y, 1000 if c.unbiased else 200)
            if not c.unbiased and (c.delta(n) == 1.0 or z > 2 * Z):
                return
            if c.unbiased and z >= Z:  # a rare event that did not happen, or a bias? More draws tell
                z = _bias(c, y, 10_000)
            demand(not c.unbiased or z < Z, c, f"E C(x) is not x: off by {z:.1f} standard errors on {name}, {n} long.")
    demand(c.unbiased, c, "is declared biased and was not seen to be: declare unbiased, and omega.")


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
    """``contractive(c)`` gives a compressor with delta > 0 for every size, or refuses, naming the reason and a cure.
    ``Unproven`` alone, which says so, passes without a delta."""
    try:
        inner = contractive(c)
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
