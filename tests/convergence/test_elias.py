"""Elias codes: the lengths that theory gives, measured on the streams; every form; feedback; what the table says."""

from __future__ import annotations

import re
from math import ceil, inf, pi, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.core.source import Source
from compcomm.ops.reference.elias import stream_at
from compcomm.testing.round_trip import trip
from tests.reference import elias

METHODS = (Path(__file__).resolve().parents[2] / "docs/methods/compressors/index.md").read_text()
LENGTHS = {1: 1, 2: 3, 3: 3, 4: 6, 7: 6, 8: 7, 15: 7, 16: 11, 100: 13, 1000: 17}


def test_lengths_of_omega() -> None:
    assert {k: len(elias.omega(k)) for k in LENGTHS} == LENGTHS


def levels(c: cc.QSGD, blocks: int, seed: int = 0) -> tuple[np.ndarray, Tensor]:
    """Gaussian blocks through the real thing: their levels ``[blocks, block]``, and the section."""
    y = torch.randn(blocks * c.block, generator=torch.Generator().manual_seed(seed))
    t = trip(c, y, cc.Rng(seed=seed))
    steps = t.section[4 : 4 + 4 * blocks].clone().view(torch.float32)
    q = (t.value.view(blocks, -1).double() / steps[:, None].double()).round().long()
    assert torch.equal((q.float() * steps[:, None]).view(-1), t.value)
    return q.numpy(), t.section


def used(section: Tensor) -> int:
    return int(section[:4].clone().view(torch.int32))


def mean_and_deviation(numbers: list[int]) -> tuple[float, float, float]:
    """Mean, standard deviation of one, standard error of the mean."""
    a = np.array(numbers, float)
    return float(a.mean()), float(a.std()), float(a.std() / sqrt(len(a)))


def test_bits_of_a_gaussian_block() -> None:
    """d = 512, s = 22, L2: one vector of the table took 1455 bits sparse and 1552 dense (with its 32-bit step)."""
    q, section = levels(cc.QSGD(levels=22, norm=2, coding="elias", dense_below=1), 400)
    sparse, dense, ends = ([len(f(row)) for row in q.tolist()] for f in (elias.sparse, elias.dense, elias.end))
    stream = 8 * (used(section) - stream_at(q.size, 512))
    assert 0 <= stream - sum(sparse) - sum(ends) < 32  # the sparse form, in every block, and nothing more
    for found, figure, due in ((sparse, 1455, 1423.1), (dense, 1552, 1520.7)):  # due: 4,000 vectors in NumPy
        mean, one, error = mean_and_deviation([32 + n for n in found])
        assert mean == pytest.approx(due, abs=5 * error)
        assert figure == pytest.approx(mean, abs=2 * one)
    assert np.mean(ends) < 3  # what says where a block ends costs two bits


def test_bits_of_a_sparse_block() -> None:
    """d = 4096, s = 1, L2: sqrt(2 d/pi) = 51 nonzeros on average; a vector with 40 took 583 bits."""
    q, section = levels(cc.QSGD(levels=1, norm=2, block=4096, coding="elias", dense_below=1), 200)
    counts, bits = (q != 0).sum(1).tolist(), [len(elias.sparse(row)) for row in q.tolist()]
    stream = 8 * (used(section) - stream_at(q.size, 4096))
    assert 0 <= stream - sum(bits) - sum(len(elias.end(row)) for row in q.tolist()) < 32
    mean, _, error = mean_and_deviation(counts)
    assert mean == pytest.approx(sqrt(2 * 4096 / pi), abs=5 * error)
    slope, start = np.polyfit(counts, bits, 1)  # bits of a vector with 40 nonzeros, from those with more and with less
    spread = float(np.std(np.array(bits) - slope * np.array(counts) - start))
    assert 32 + start + 40 * slope == pytest.approx(583, abs=2 * spread)


def test_bits_of_a_long_vector() -> None:
    """d = 100,000, s = 316 (more levels than we send): 275,286 bits sparse, 294,171 dense, by the lengths alone."""
    random = np.random.default_rng(1)
    x = random.standard_normal(100_000)
    q = np.floor(316 * np.abs(x) / np.linalg.norm(x) + random.random(len(x))).astype(int)
    longest = max(int(q.max()) + 1, len(x))
    length = np.array([0] + [len(elias.omega(k)) for k in range(1, 2000)])
    places = np.flatnonzero(q)
    gaps = np.diff(places, prepend=-1)
    assert gaps.max() < 2000 < longest
    sparse = 32 + (length[gaps] + 1 + length[q[places]]).sum()
    dense = 32 + length[q + 1].sum() + len(places)
    assert sparse == pytest.approx(275_286, abs=4 * 135)
    assert dense == pytest.approx(294_171, abs=4 * 260)


@pytest.mark.parametrize("tail", [0, 1, 15, 17])
def test_every_form_is_lossless(tail: int) -> None:
    """Blocks that are all zero, few, small or wild choose sparse, dense, fixed or nothing; the last one is short."""
    g = torch.Generator().manual_seed(3)
    wild = torch.rand(64, generator=g) * 2 - 1
    few = torch.zeros(64)
    few[[3, 50]] = torch.tensor([1.0, -0.5])
    small = torch.where(torch.rand(64, generator=g) < 0.5, 0.12, -0.12)
    small[::16] = 0.0
    small[5] = 1.0
    y = torch.cat((wild, torch.zeros(64), few, small, wild, torch.zeros(64), wild[:tail]))
    rounding = "nearest"
    c = cc.QSGD(bits=5, rounding=rounding, block=64, coding="elias", dense_below=1)
    t = trip(c, y)
    blocks = -(-len(y) // 64)
    forms = t.section[4 + 4 * blocks : stream_at(len(y), 64)]
    found = [int(forms[b // 4]) >> b % 4 * 2 & 3 for b in range(blocks)]
    assert found[:6] == [0, 3, 2, 1, 0, 3]
    fixed = trip(cc.QSGD(bits=5, rounding=rounding, block=64, dense_below=1), y)
    assert torch.equal(t.value, fixed.value) and torch.equal(t.error, fixed.error)


@pytest.mark.parametrize("numel", [1, 17, 512, 513, 5000, 1 << 20])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_never_much_longer_than_fixed(numel: int, bits: int) -> None:
    c, fixed = (cc.QSGD(bits=bits, coding=coding, dense_below=1) for coding in ("elias", "fixed"))
    assert c.section(numel) - fixed.section(numel) == 4 + ceil(ceil(numel / 512) / 4)
    if numel <= 5000:
        y = torch.rand(numel, generator=torch.Generator().manual_seed(0))
        section = trip(c, y).section
        assert used(section) <= -(-c.section(numel) // 4) * 4 and not section[used(section) :].any()


def test_the_table_of_compressors_says_what_was_measured() -> None:
    (row,) = [line for line in METHODS.splitlines() if line.startswith('| [`QSGD(bits, coding="elias")`]')]
    for norm, text in ((2.0, r"([0-9.]+) \(`norm=2`\)"), (inf, r"([0-9.]+) \(max norm\)")):
        _, section = levels(cc.QSGD(bits=4, norm=norm, coding="elias", dense_below=1), 1000)
        match = re.search(text, row)
        assert match and float(match[1]) == pytest.approx(8 * used(section) / (1000 * 512), abs=0.006), norm


def test_works_under_error_feedback() -> None:
    """The residual of nearest rounding stays small, and what was sent is all that is missing."""
    c = cc.QSGD(bits=3, rounding="nearest", block=64, coding="elias", dense_below=1)
    layout = cc.Layout.of([("w", (1, 1000))])
    g = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    residual, sent = torch.zeros(1000), torch.zeros(1000, dtype=torch.float64)
    for step in range(50):
        payload = c.encode_(Source(cc.Bucket(residual, layout), cc.Bucket(g, layout)), cc.Rng(step=step))
        sent += payload.dense(layout).flat.double()
    assert float(residual.norm()) < 2 * float(g.norm())
    assert torch.allclose(sent + residual, 50 * g.double(), rtol=1e-4, atol=1e-3)
    assert "Contractive" not in repr(cc.ErrorFeedback(c))
