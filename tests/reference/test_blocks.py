"""BlockTopK and BlockRandK equal what their pages say, written with numpy."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc
from compcomm.core.random import key
from tests.reference.philox import philox

from .package import NAME, assert_equal, floats, rngs, run


def blocks_of(y: np.ndarray, block: int) -> np.ndarray:
    return np.pad(y, (0, -len(y) % block)).reshape(-1, block)


def alone(blocks: np.ndarray, picks: list[int], numel: int) -> np.ndarray:
    kept = np.zeros_like(blocks)
    kept[picks] = blocks[picks]
    return kept.reshape(-1)[:numel]


@given(st.integers(1, 1100), st.integers(0, 2**32), st.sampled_from([1, 17, 256]))
def test_the_blocks_of_largest_norm(numel: int, seed: int, block: int) -> None:
    y = np.random.default_rng(seed).standard_normal(numel).astype(np.float32)
    blocks = blocks_of(y, block)
    k = max(1, ceil(len(blocks) / 5))
    picks = sorted(range(len(blocks)), key=lambda b: -float((blocks[b].astype(np.float64) ** 2).sum()))[:k]
    section = np.array(picks, "<u4").tobytes() + blocks[picks].tobytes()
    assert_equal(run(cc.BlockTopK(0.2, block), y, cc.Rng()), section, alone(blocks, picks, numel))


@given(floats(), rngs, st.sampled_from([1, 17, 256]), st.integers(0, 300))
def test_the_same_blocks_on_every_rank(y: np.ndarray, rng: cc.Rng, block: int, offset: int) -> None:
    blocks = blocks_of(y, block)
    k, words = max(1, ceil(len(blocks) * 3 / 10)), list[tuple[int, int]]()
    for b in range(len(blocks)):
        counter = ((offset + b) // 4, rng.step & 0xFFFFFFFF, 0, 2**31 + 1)
        words.append((philox(counter, key(rng.seed, NAME) % 2**64)[(offset + b) % 4], b))
    picks = sorted(b for _, b in sorted(words)[:k])
    assert_equal(run(cc.BlockRandK(0.3, block), y, rng, offset), blocks[picks].tobytes(), alone(blocks, picks, len(y)))


def test_an_embedding_of_which_few_rows_were_looked_up_loses_nothing() -> None:
    layout = cc.Layout.of([("embedding", (1000, 64))])
    x = torch.zeros(1000, 64)
    x[[3, 77, 999]] = torch.randn(3, 64)
    sent = cc.BlockTopK(0.003, block=64).encode_(cc.Bucket(x.view(-1).clone(), layout), cc.Rng())
    assert torch.equal(sent.dense(layout).flat.view(1000, 64), x) and len(sent.wire) < 900


def test_ranks_sum_what_they_send() -> None:
    """By an all-reduce the mean of what each keeps is the kept part of the mean, without a second loss."""
    given = [{"w": torch.randn(64, 64)} for _ in range(3)]
    simulator = cc.Simulator(cc.BlockRandK(0.25), world=3)
    assert isinstance(cc.settle(cc.BlockRandK(0.25), 3), cc.AllReduce)
    mean = simulator.mean(given)[0]["w"].view(-1, 256)
    due = torch.stack([one["w"] for one in given]).mean(0).view(-1, 256)
    kept = mean.ne(0).any(1)
    assert int(kept.sum()) == 4
    torch.testing.assert_close(mean[kept], due[kept])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("made", [cc.BlockTopK(1.0), cc.BlockRandK(1.0), cc.ChunkedTopK(k=4096, values=torch.float32)])
@pytest.mark.parametrize("route", [cc.AllGather, cc.TwoPhase])
def test_half_precision_is_coded_in_fp32(made: cc.Compressor, route: type[cc.AllGather], dtype: torch.dtype) -> None:
    given = [torch.randn(64, 70, generator=torch.Generator().manual_seed(r)).to(dtype) for r in range(2)]
    layout = cc.Layout.of([("w", (64, 70))])
    means = cc.Simulator(route(made), 2).step([[cc.Bucket(g.view(-1).clone(), layout)] for g in given])
    due = (given[0].float() + given[1].float()) / 2
    torch.testing.assert_close(means[0][0].flat.float(), due.view(-1), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("made", [cc.BlockTopK(1.0), cc.ChunkedTopK(k=4096, values=torch.float32)])
def test_a_mean_that_fits_is_no_infinity(made: cc.Compressor) -> None:
    large = {"w": torch.full((64, 70), 3e38)}
    assert torch.isfinite(cc.Simulator(made, 3).mean([large] * 3)[0]["w"]).all()
