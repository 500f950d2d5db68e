"""The wire format, byte by byte, and what happens when a peer's bytes are not as they should be."""

from __future__ import annotations

import struct

import pytest
import torch

import compcomm as cc
from compcomm.core.header import read_headers, write_header
from compcomm.core.packing import pack, pack_rows, pack_shares


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("|", ""))


def test_a_message_by_hand() -> None:
    """rank 2 of 3, step 5, bucket 1: three segments, of which the second has no gradient, and a sign-coded one."""
    layout = cc.Layout.of([("b", (2,)), ("z", (1,)), ("w", (2, 16))])
    c = cc.SignScale(block=16, dense_below=1)
    flat = torch.tensor([1.0, -2.0, 0.0, *[3.0] * 15, -3.0, *[-0.5] * 16])
    ctx = cc.Context(rank=2, world=3, step=5, bucket=1)
    payload = c.encode_(cc.Bucket(flat, layout), ctx.rng)
    write_header(payload.wire, payload.status, ctx)
    header = b"CCM1" + struct.pack("<BBHIII", 0, 0, 2, 5, 1, 52) + _bytes("02 000000")
    exact = struct.pack("<3f", 1.0, -2.0, 0.0)
    rows = _bytes("00 000000")  # neither of the two is zero
    coded = struct.pack("<2f", 3.0, 0.5) + _bytes("00 80 ff ff")
    assert payload.wire.numpy().tobytes() == header + exact + rows + coded
    assert payload.wire.numel() == 24 + 12 + 4 + 12
    flat = torch.tensor([1.0, -2.0, 0.0, *[3.0] * 15, -3.0, *[0.0] * 16])
    payload = c.encode_(cc.Bucket(flat, layout), ctx.rng)
    assert payload.wire[36:40].tolist() == [2, 0, 0, 0], "the second row of w is"


@pytest.mark.parametrize(
    ("compressor", "values", "section"),
    [
        (cc.Cast(torch.bfloat16, 0), [1.0, -2.0, 3.0], "803f 00c0 4040"),
        (cc.Cast(torch.float16, 0), [1.0, -2.0, 3.0], "003c 00c0 0042"),
        # N = 7: step 1, codes q + 7 of four bits, low nibble first
        (cc.QSGD(bits=4, rounding="nearest", dense_below=1), [7.0, -7.0, 0.0, 2.6, -1.2], "0000803f | 0e a7 06"),
        # N = 3: step 1, codes q + 3 of three bits: 6, 0, 3 -> 6 + (3 << 6)
        (cc.QSGD(bits=3, rounding="nearest", dense_below=1), [3.0, -3.0, 0.4], "0000803f | c6 00"),
        # k = 2: one block of indices with two elements, at 1 and 3
        (cc.TopK(k=2, dense_below=1), [0.5, -2.0, 0.1, 1.0], "02000000 | 0100 0300 | 000000c0 | 0000803f"),
        # k = 1: padding after the single offset
        (cc.TopK(k=1, dense_below=1), [0.5, -2.0, 0.1], "01000000 | 0100 0000 | 000000c0"),
        (cc.RandK(ratio=1.0, dense_below=1), [2.5], "00002040"),
        (cc.SignScale(scale="l2", dense_below=1), [3.0, -3.0, 0.0, -0.0], "b6c30740 | 02"),
    ],
)
def test_sections_by_hand(compressor: cc.Compressor, values: list[float], section: str) -> None:
    layout = cc.Layout.of([("w", (1, len(values)))])
    payload = compressor.encode_(cc.Bucket(torch.tensor(values), layout), cc.Rng())
    (row,) = payload.packing.coded
    found = payload.wire[row.wire : row.wire + compressor.section(len(values))].numpy().tobytes()
    assert found == _bytes(section)


def test_packing_puts_exact_segments_first_and_aligns() -> None:
    layout = cc.Layout.of([("w", (3, 7)), ("b", (3,)), ("none", (0, 2)), ("v", (5, 5)), ("s", ())])
    packing = pack(cc.Cast(torch.bfloat16, 20), layout)
    assert packing.header == 24 and packing.count == 5
    assert [(r.segment.name, r.wire) for r in packing.exact] == [("b", 24), ("s", 36)]
    assert [(r.segment.name, r.wire) for r in packing.coded] == [("w", 40), ("v", 84)]
    assert packing.splits == (136,) and packing.nbytes == 136
    assert pack(cc.Cast(torch.bfloat16, 20), layout) is packing, "packings are made once"


def test_more_segments_make_a_longer_header() -> None:
    for count, due in ((1, 24), (8, 24), (32, 24), (33, 28), (161, 44)):
        packing = pack(cc.SignScale(), cc.Layout.of((f"b{i}", (1,)) for i in range(count)))
        assert packing.header == due
        assert packing.nbytes == due + 4 * count


def test_one_message_per_owner() -> None:
    layout = cc.Layout.of([("w", (1, 96)), ("b", (5,))])
    packing = pack_shares(cc.SignScale(block=16, dense_below=1), layout, 4)
    coded = [(r.message, r.segment.start, r.segment.stop, r.segment.offset) for r in packing.coded]
    assert coded == [(0, 0, 16, 0), (1, 16, 48, 16), (2, 48, 64, 48), (3, 64, 96, 64)]
    assert [(r.message, r.segment.start, r.segment.stop) for r in packing.exact] == [
        (0, 96, 97), (1, 97, 98), (2, 98, 99), (3, 99, 101),
    ]  # fmt: skip
    assert packing.splits == (24 + 4 + 8, 24 + 4 + 12, 24 + 4 + 8, 24 + 8 + 12)


def test_rows_need_equal_rows() -> None:
    layout = cc.Layout.of([("w", (2, 600))])
    with pytest.raises(ValueError, match=r"not made of 3 equal rows"):
        pack_rows(cc.SignScale(), layout, layout, 3)


def _headers(world: int = 3, **changes: int) -> torch.Tensor:
    """Messages of 32 bytes from every rank of step 9, bucket 4; ``changes`` are made to the context of rank 1."""
    wires = torch.zeros(world, 32, dtype=torch.uint8)
    for rank in range(world):
        ctx = cc.Context(rank=rank, world=world, step=9, bucket=4)
        for name, value in (changes if rank == 1 else {}).items():
            setattr(ctx, name, value)
        write_header(wires[rank], torch.tensor([0, 1, 0], dtype=torch.uint8), ctx)
    return wires


HERE = cc.Context(rank=0, world=3, step=9, bucket=4)


def _read(wires: torch.Tensor) -> object:
    return read_headers(wires, 2, HERE, (32,) * len(wires))


def test_headers_combine() -> None:
    flags = read_headers(_headers(), 2, HERE, (32,) * 3)
    assert not flags.bad and flags.zero and flags.skip.tolist() == [0, 1], "the second segment is zero on all ranks"
    wires = _headers()
    write_header(wires[2], torch.tensor([1, 0, 1], dtype=torch.uint8), cc.Context(rank=2, world=3, step=9, bucket=4))
    flags = read_headers(wires, 2, HERE, (32,) * 3)
    assert flags.bad and not flags.zero and flags.skip.tolist() == [0, 0]


@pytest.mark.parametrize(("field", "value"), [("step", 10), ("bucket", 5), ("rank", 2), ("step", 8)])
def test_a_peer_that_is_elsewhere(field: str, value: int) -> None:
    with pytest.raises(cc.PeerError, match=r"rank 1 sent .* out of step, or configured differently"):
        _read(_headers(**{field: value}))


def test_a_peer_with_another_length() -> None:
    with pytest.raises(cc.PeerError, match="rank 0 sent"):
        read_headers(_headers(), 2, HERE, (32, 32, 36)[::-1])


@pytest.mark.parametrize("byte", range(20))
def test_any_corrupted_byte_of_a_header_is_noticed(byte: int) -> None:
    wires = _headers()
    wires[1, byte] ^= 0x80
    with pytest.raises(cc.PeerError, match="rank 1"):
        _read(wires)


def test_a_peer_that_failed() -> None:
    wires = _headers()
    write_header(
        wires[1], torch.zeros(3, dtype=torch.uint8), cc.Context(rank=1, world=3, step=9, bucket=4), failed=True
    )
    with pytest.raises(cc.PeerError, match=r"rank 1 failed in step 9, bucket 4"):
        _read(wires)


def test_steps_wrap_at_32_bits() -> None:
    ctx = cc.Context(rank=0, world=1, step=2**32 + 7)
    wire = torch.zeros(32, dtype=torch.uint8)
    write_header(wire, torch.zeros(3, dtype=torch.uint8), ctx)
    assert not read_headers(wire[None], 2, ctx, (32,)).bad


def test_corrupted_indices_of_a_peer_are_no_addresses() -> None:
    c = cc.TopK(k=3, dense_below=1)
    layout = cc.Layout.of([("w", (10, 10))])
    payload = c.encode_(cc.Bucket(torch.randn(100), layout), cc.Rng())
    (row,) = payload.packing.coded
    for at, value in ((0, 4), (3, 1), (4, 200), (9, 1)):
        wire = payload.wire.clone()
        wire[row.wire + at] = value
        out = cc.Bucket(torch.zeros(100), layout)
        with pytest.raises(RuntimeError, match="corrupt"):
            c.decode_(wire[None], out, cc.Rng(), payload.packing)
        assert not out.flat.any(), "nothing of a corrupt message is applied"


@pytest.mark.parametrize("length", [0, 23, 101, 2**31, 2**32 - 1])
def test_a_length_that_no_message_has_is_refused_before_it_is_used(length: int) -> None:
    """Of a message of variable length the header comes first, and says how much is to be received: never more than the
    room that there is, nor less than the header itself."""
    heads = torch.zeros(2, 24, dtype=torch.uint8)
    for rank, claim in enumerate((60, length)):
        ctx = cc.Context(rank=rank, world=2, step=5, bucket=1)
        write_header(heads[rank], torch.ones(4, dtype=torch.uint8), ctx, length=claim)
    with pytest.raises(cc.PeerError, match=f"rank 1 sent .*{length}"):
        read_headers(heads, 3, cc.Context(world=2, step=5, bucket=1), (100, 100), shorter=True)
    write_header(heads[1], torch.ones(4, dtype=torch.uint8), cc.Context(rank=1, world=2, step=5, bucket=1), length=100)
    assert read_headers(heads, 3, cc.Context(world=2, step=5, bucket=1), (100, 100), shorter=True).lengths == (60, 100)
