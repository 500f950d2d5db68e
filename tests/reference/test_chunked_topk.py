"""ChunkedTopK equals its naive reference, and its 12-bit places any reader's; the chosen chunks are of the matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc
from compcomm.ops.reference.bits import pack12, unpack12
from compcomm.testing.round_trip import Trip, trip

from . import chunked_topk

RNG = cc.Rng()


def run(c: cc.ChunkedTopK, x: torch.Tensor) -> Trip:
    piece = cc.Segment("w", tuple(x.shape), 0, x.numel())
    return trip(c, x.reshape(-1), RNG, piece=piece)


@pytest.mark.parametrize("shape", [(1, 5), (3, 1365), (64, 64), (64, 65), (65, 64), (128, 64), (130, 201), (1, 9000)])
@pytest.mark.parametrize("k", [1, 5, 64])
def test_equals_the_reference(shape: tuple[int, int], k: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(k)).mul(4).round() / 4  # many are equal
    found = run(cc.ChunkedTopK(k, values=torch.float32, dense_below=1), x)
    section = chunked_topk.encode(x.numpy().reshape(-1), shape, k)
    assert found.section.numpy().tobytes()[: len(section)] == section
    assert np.array_equal(found.value.numpy(), chunked_topk.decode(section, shape, k))


@given(st.lists(st.integers(0, 4095), max_size=33))
def test_places_are_a_stream_of_12_bits(places: list[int]) -> None:
    packed = pack12(torch.tensor(places, dtype=torch.int64))
    due = sum(place << 12 * i for i, place in enumerate(places)).to_bytes(-(-len(places) * 12 // 8), "little")
    assert packed.numpy().tobytes() == due
    assert unpack12(packed, len(places)).tolist() == places


def test_more_dimensions_are_rows_by_the_rest_and_pieces_are_vectors() -> None:
    x = torch.randn(64, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    c = cc.ChunkedTopK(3)
    assert torch.equal(run(c, x).value, run(c, x.view(64, 128)).value)
    assert not torch.equal(run(c, x).value, run(c, x.view(2, 4096)).value), "others are in a chunk"
    whole = cc.Segment("w", (128, 64), 0, 8192)
    y = torch.randn(8192, generator=torch.Generator().manual_seed(1))
    half = trip(c, y[4096:].clone(), RNG, piece=whole.piece(4096, 8192)._replace(start=0, stop=4096))
    assert torch.equal(half.value, run(c, y[4096:].view(1, -1)).value)


def test_the_transform_is_the_orthonormal_cosine_transform() -> None:
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    due = np.concatenate([chunked_topk.cosine(x[:, :64].numpy()), chunked_topk.cosine(x[:, 64:].numpy())]).reshape(
        2, -1
    )
    found = run(cc.ChunkedTopK(10, dct=True, values=torch.float32), x)
    values = np.frombuffer(found.section.numpy().tobytes(), "<f4", 20).reshape(2, 10)
    largest = np.sort(np.abs(due), 1)[:, :-11:-1]
    np.testing.assert_allclose(np.abs(values), largest, rtol=1e-5)
    lost = (due**2).sum() - (largest**2).sum()
    assert float(found.error.double().square().sum()) == pytest.approx(lost, rel=1e-5)


def test_smooth_chunks_need_fewer_coefficients_than_elements() -> None:
    i = torch.arange(64.0) / 64
    x = torch.sin(3 * i)[:, None] * torch.cos(2 * i)
    lost = [float(run(cc.ChunkedTopK(16, dct=dct), x).error.square().sum() / x.square().sum()) for dct in (False, True)]
    assert lost[1] < 0.01 < 0.9 < lost[0]


@pytest.mark.parametrize(("values", "bits"), [(torch.float32, 44), (torch.bfloat16, 28), (torch.float16, 28)])
def test_bytes_and_contraction(values: torch.dtype, bits: int) -> None:
    c = cc.ChunkedTopK(32, values=values)
    assert c.section(1 << 20) == (1 << 20) // 4096 * 32 * bits // 8
    assert c.delta(1 << 20) == {torch.float32: 1 / 128, torch.bfloat16: (1 - 2**-16) / 128, torch.float16: None}[values]
    x = torch.randn(130, 201, generator=torch.Generator().manual_seed(3)) * 1e5
    value = run(c, x).value
    assert value.isfinite().all() and int((value != 0).sum()) == c.kept(x.numel())
    if values == torch.float16:
        assert float(value.abs().max()) == 65504
