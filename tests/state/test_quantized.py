"""Slots in fewer bytes: sections end to end, and nothing else."""

from __future__ import annotations

import pytest
import torch

import compcomm as cc
from compcomm.state import quantized
from compcomm.state.quantized import PIECE, packed, section_bytes

CODECS: list[cc.Compressor] = [
    cc.QSGD(bits=8, rounding="nearest", block=64, dense_below=0),
    cc.Cast(torch.bfloat16, dense_below=0),
    cc.Cast(torch.float8_e4m3fn, dense_below=0),
    cc.SignScale(dense_below=0),
]
LAYOUT = cc.Layout.of([("a", (7, 19)), ("b", (3,)), ("empty", (0, 4)), ("c", (64, 33)), ("d", ())])


def _slab(codec: cc.Compressor, layout: cc.Layout) -> torch.Tensor:
    slot = cc.Slot(cc.Merge.MEAN, dtype=torch.uint8, codec=quantized.Quantized(codec))
    sizes = [slot.size(s.numel) for s in layout.segments if s.numel]
    return torch.zeros(sum(sizes), dtype=torch.uint8)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_zeros_stand_for_zeros(codec: cc.Compressor) -> None:
    out = cc.Bucket(torch.full((LAYOUT.numel,), 7.0), LAYOUT)
    quantized.decode_add_(_slab(codec, LAYOUT), LAYOUT, codec, out)
    assert out.flat.eq(7.0).all()
    quantized.decode_(_slab(codec, LAYOUT), LAYOUT, codec, out)
    assert not out.flat.any()


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_slab_is_the_sections_end_to_end(codec: cc.Compressor) -> None:
    x = torch.randn(LAYOUT.numel, generator=torch.manual_seed(3))
    slab = _slab(codec, LAYOUT)
    quantized.encode_(cc.Bucket(x.clone(), LAYOUT), slab, codec)
    alone: list[torch.Tensor] = []
    for s in LAYOUT.segments:
        if s.numel:
            one = cc.Layout.of([(s.name, s.shape)])
            alone.append(_slab(codec, one))
            quantized.encode_(cc.Bucket(x[s.start : s.stop].clone(), one), alone[-1], codec)
    assert torch.equal(slab, torch.cat(alone))
    assert packed(codec, LAYOUT).header == 0


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_what_is_lost_is_within_delta(codec: cc.Compressor) -> None:
    x, g = (torch.randn(LAYOUT.numel, generator=torch.manual_seed(seed)) for seed in (1, 2))
    slab, out = _slab(codec, LAYOUT), torch.zeros(LAYOUT.numel)
    quantized.encode_(cc.Bucket(x.clone(), LAYOUT), slab, codec, decay=0.5, add=cc.Bucket(g, LAYOUT), add_scale=2.0)
    quantized.decode_add_(slab, LAYOUT, codec, cc.Bucket(out, LAYOUT), 4.0)
    for s in LAYOUT.segments:
        due = 0.5 * x[s.start : s.stop] + 2 * g[s.start : s.stop]
        lost = (out[s.start : s.stop] / 4 - due).square().sum()
        assert lost <= (1 - (codec.delta(s.numel) or 0)) * due.square().sum() + 1e-9, s


def test_a_slab_of_some_segments_of_a_bucket() -> None:
    codec, some = CODECS[0], LAYOUT.select(lambda s: s.name in "ac")
    x = torch.randn(LAYOUT.numel, generator=torch.manual_seed(3))
    slab, out = _slab(codec, some), torch.full((LAYOUT.numel,), 5.0)
    quantized.encode_(cc.Bucket(x.clone(), LAYOUT), slab, codec, layout=some)
    quantized.decode_(slab, some, codec, cc.Bucket(out, LAYOUT))
    for s in LAYOUT.segments:
        part = out[s.start : s.stop]
        assert (part - x[s.start : s.stop]).abs().le(0.02).all() if s.name in "ac" else part.eq(5.0).all()


def test_the_8_bit_form_takes_1_07_bytes_per_element() -> None:
    slot = cc.Slot(cc.Merge.MEAN, dtype=torch.uint8, codec=quantized.Quantized(CODECS[0]))
    assert slot.size(1_000_000) == 1_000_000 + 4 * 15_625
    assert slot.size(100_000_000) <= 1.07e8
    assert slot.size(1_000_000) / 1e6 <= 1.07


def test_non_finite_numbers_are_reported_and_left_out() -> None:
    one = cc.Layout.of([("a", (128,))])
    x = torch.ones(128)
    x[5] = float("inf")
    slab, out = _slab(CODECS[0], one), torch.zeros(128)
    status = quantized.encode_(cc.Bucket(x, one), slab, CODECS[0])
    quantized.decode_add_(slab, one, CODECS[0], cc.Bucket(out, one))
    assert status[0] == 1 and out[5] == 0 and out[4] == 1


def test_what_cannot_be_kept_so() -> None:
    x = cc.Bucket(torch.zeros(LAYOUT.numel), LAYOUT)
    with pytest.raises(ValueError, match="keeps no memory of 'a'"):
        quantized.encode_(x, torch.zeros(9, dtype=torch.uint8), cc.QSGD(bits=8))
    with pytest.raises(ValueError, match="fixed length"):
        quantized.encode_(x, torch.zeros(9, dtype=torch.uint8), cc.QSGD(bits=8, coding="elias", dense_below=0))
    with pytest.raises(ValueError, match=r"quantized.decode_: the slab has 9 bytes where \d+ are due"):
        quantized.decode_(torch.zeros(9, dtype=torch.uint8), LAYOUT, CODECS[0], x)
    with pytest.raises(ValueError, match="only what is SHARDED goes into another slot"):
        cc.Slot(cc.Merge.MEAN, into="residual")
    with pytest.raises(ValueError, match="Give dtype=torch"):
        cc.Slot(cc.Merge.MEAN, codec=quantized.Quantized(CODECS[0]))


@pytest.mark.parametrize("codec", CODECS[:3], ids=repr)
def test_a_large_parameter_is_read_and_written_in_parts(codec: cc.Compressor) -> None:
    numel = 2 * PIECE + 1000
    layout = cc.Layout.of([("before", (5,)), ("large", (numel,))])
    x = torch.randn(layout.numel, generator=torch.manual_seed(4))
    slab = _slab(codec, layout)
    quantized.encode_(cc.Bucket(x.clone(), layout), slab, codec)
    section = slab[section_bytes(codec, 5) :]
    assert section.numel() == section_bytes(codec, numel)
    whole = torch.zeros(layout.numel)
    quantized.decode_(slab, layout, codec, cc.Bucket(whole, layout))
    for low, high in ((0, numel), (17, 99), (PIECE - 3, PIECE + 3), (2 * PIECE, numel), (5, numel - 5)):
        assert torch.equal(quantized.read(section, codec, numel, low, high), whole[5 + low : 5 + high])
    again = torch.zeros_like(section)
    for low in range(0, numel, PIECE):
        quantized.write(x[5 + low : 5 + min(low + PIECE, numel)].clone(), again, codec, low)
    assert torch.equal(again, section)
    at_once = torch.zeros_like(section)
    quantized.write(x[5:].clone(), at_once, codec)
    assert torch.equal(at_once, section)
