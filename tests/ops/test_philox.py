"""Philox: the published answers, SIMD against scalar, and the dithers against an independent generator."""

from __future__ import annotations

import ctypes

import pytest
import torch

from compcomm.ops import native
from compcomm.ops.reference.philox import dither, philox, uniform
from tests.reference.philox import MASK, dithers
from tests.reference.philox import philox as scalar

ANSWERS = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0 << 32 | 0xA4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
WORD = ctypes.c_uint32


def compiled(counter: tuple[int, int, int, int], key: int, n: int) -> list[tuple[int, ...]]:
    """Words of the counters from ``counter`` on, by the C++ library."""
    draw = native.function("cc_philox", WORD, WORD, WORD, WORD, native.LONG, native.LONG, native.POINTER)
    if draw is None:
        pytest.skip("no native library")
    out = (WORD * (4 * n))()
    assert draw(*counter, key, n, ctypes.addressof(out)) == 0
    return [tuple(out[4 * i : 4 * i + 4]) for i in range(n)]


@pytest.mark.parametrize(("counter", "key", "words"), ANSWERS)
def test_known_answers(counter: tuple[int, int, int, int], key: int, words: tuple[int, ...]) -> None:
    first, *rest = counter
    found = philox(torch.tensor([first]), *rest, key)
    assert tuple(int(w) for w in found) == words
    before = native.isa()
    for isa in native.isas():
        native.set_isa(isa)
        assert compiled(counter, key, 1) == [words]
        assert compiled(counter, key, 16)[0] == words  # one draw is scalar, sixteen are vectors
    if native.available():
        native.set_isa(before)


@pytest.mark.parametrize("first", [0, 5, 2**32 - 20])
def test_vectors_equal_scalars(first: int) -> None:
    """Forty counters, wrapping past 2^32: two SIMD groups and a tail."""
    counters = [((first + i) & MASK, 7, MASK, 3) for i in range(40)]
    expected = [scalar(c, 0x123456789ABCDEF) for c in counters]
    words = philox(torch.tensor([c[0] for c in counters]), 7, MASK, 3, 0x123456789ABCDEF)
    assert [tuple(w) for w in torch.stack(words, 1).tolist()] == expected
    before = native.isa()
    for isa in native.isas():
        native.set_isa(isa)
        assert compiled(counters[0], 0x123456789ABCDEF, 40) == expected
    if native.available():
        native.set_isa(before)


@pytest.mark.parametrize(("offset", "numel"), [(0, 300), (1, 1), (127, 2), (1000, 129), (2**33 - 60, 130)])
def test_dithers_belong_to_the_element(offset: int, numel: int) -> None:
    key = -987654321
    expected = dithers(key, 11, 2, offset, numel)
    assert uniform(key, offset, numel, 11, 2).numpy().tolist() == expected.tolist()


def test_dithers_are_uniform() -> None:
    """Mean and variance of 2^17 draws within five standard errors, and no correlation between neighbours."""
    u = dither(42, 0, 2**17, 0, 0).double() / 65536 + 2.0**-17
    n = u.numel()
    assert abs(float(u.mean()) - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs(float(u.var()) - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    centred = u - 0.5
    for lag in (1, 16, 128):
        assert abs(float((centred[lag:] * centred[:-lag]).mean())) < 5 / 12 / n**0.5
