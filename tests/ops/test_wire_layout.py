"""The wire to the bit, on examples small enough to work out by hand, and the rules that touch few elements."""

from __future__ import annotations

import struct

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from tests.ops.sparse_case import using

OPS = torch.ops.compcomm
BACKENDS = ("reference", *native.isas())
INF, NAN = float("inf"), float("nan")


def row(numel: int, add: int = -1, offset: int = 0, key: int = 0) -> Tensor:
    return torch.tensor([[0, add, numel, 0, offset, key, 0, 0]])


def send(
    backend: str, op: str, nbytes: int, x: list[float], *tail: object, add: list[float] | None = None
) -> tuple[bytes, list[float], list[int]]:
    """The message, what is left in x, and the status, of one row."""
    left, wire = torch.tensor(x), torch.full((nbytes,), 0xFF, dtype=torch.uint8)
    status = torch.zeros(2, dtype=torch.uint8)
    table = row(len(x), -1 if add is None else 0)
    with using(backend):
        gradient = None if add is None else torch.tensor(add)
        getattr(OPS, op)(left, gradient, wire, table, status, 1.0, 1.0, *tail)
    return bytes(wire.tolist()), left.tolist(), status.tolist()


def receive(backend: str, op: str, messages: list[bytes], numel: int, *tail: object) -> list[float]:
    wires = torch.tensor([list(m) for m in messages], dtype=torch.uint8)
    out = torch.full((numel,), NAN)
    with using(backend):
        getattr(OPS, op)(wires, row(numel), torch.zeros(1, dtype=torch.uint8), out, 1.0, False, *tail)
    return out.tolist()


def qsgd(bits: int, levels: int, *, norm2: bool = False, gain: float = 1.0) -> tuple[object, ...]:
    return (torch.tensor([gain]), bits, levels, norm2, False, 16, 0, 0)


@pytest.mark.parametrize("backend", BACKENDS)
class TestLayout:
    def test_dense(self, backend: str) -> None:
        wire, left, status = send(backend, "dense_encode", 8, [1.0, -2.5])
        assert wire == struct.pack("<2f", 1.0, -2.5) and left == [0.0, 0.0] and status == [0, 1]
        assert receive(backend, "dense_decode", [wire], 2) == [1.0, -2.5]

    def test_bfloat16(self, backend: str) -> None:
        """1 + 2^-8 lies between two numbers and goes to the even one; the section is padded with zero bytes."""
        wire, left, _ = send(backend, "cast_encode", 8, [1.0 + 2**-8, 1.0 + 3 * 2**-8, -2.0], False)
        assert wire == struct.pack("<3H", 0x3F80, 0x3F82, 0xC000) + b"\0\0"
        assert left == [2**-8, -(2**-8), 0.0]
        assert receive(backend, "cast_decode", [wire], 3, False) == [1.0, 1.015625, -2.0]

    def test_float16(self, backend: str) -> None:
        """The largest number, the smallest denormal and half of it, which rounds to the even zero."""
        wire, left, status = send(backend, "cast_encode", 8, [65519.0, -(2**-24), 2**-25, 65520.0], True)
        assert wire == struct.pack("<4H", 0x7BFF, 0x8001, 0, 0)
        assert left == [15.0, 0.0, 2**-25, 65520.0] and status == [1, 1]  # 65520 would round to infinity: it stays
        assert receive(backend, "cast_decode", [wire], 4, True) == [65504.0, -(2**-24), 0.0, 0.0]

    def test_qsgd_4_bits(self, backend: str) -> None:
        """N = 7, step = 1: codes q + 7, low half of a byte first. 2.5 and -3.5 go to even."""
        wire, left, _ = send(backend, "qsgd_encode", 8, [7.0, -7.0, 2.5, -3.5, 0.4], *qsgd(4, 7))
        codes = [14, 0, 9, 3, 7]
        assert wire == struct.pack("<f", 1.0) + bytes([codes[0] | codes[1] << 4, codes[2] | codes[3] << 4, codes[4], 0])
        assert left == pytest.approx([0.0, 0.0, 0.5, 0.5, 0.4])
        assert receive(backend, "qsgd_decode", [wire], 5, 4, 7, 16) == [7.0, -7.0, 2.0, -4.0, 0.0]

    def test_qsgd_3_bits(self, backend: str) -> None:
        """The stream is one number, lowest code first: sum of code_j * 8^j."""
        wire, _, _ = send(backend, "qsgd_encode", 8, [3.0, -3.0, 1.0, -1.0, 0.0, 2.0], *qsgd(3, 3))
        stream = sum(code << 3 * j for j, code in enumerate([6, 0, 4, 2, 3, 5]))
        assert wire == struct.pack("<f", 1.0) + stream.to_bytes(4, "little")
        assert receive(backend, "qsgd_decode", [wire], 6, 3, 3, 16) == [3.0, -3.0, 1.0, -1.0, 0.0, 2.0]

    def test_qsgd_steps_come_first(self, backend: str) -> None:
        """Two blocks: two steps, then the codes of both; the gain scales the step and leaves the codes."""
        wire, left, _ = send(backend, "qsgd_encode", 28, [2.0] + [0.0] * 15 + [-8.0], *qsgd(8, 2, gain=0.5))
        assert wire == struct.pack("<2f", 0.5, 2.0) + bytes([4] + [2] * 15 + [0]) + b"\0\0\0"
        assert left == [1.0] + [0.0] * 15 + [-4.0]

    def test_qsgd_norm2(self, backend: str) -> None:
        wire, _, _ = send(backend, "qsgd_encode", 8, [3.0, 4.0], *qsgd(8, 10, norm2=True))
        assert wire == struct.pack("<f", 0.5) + bytes([16, 18, 0, 0])

    def test_sign(self, backend: str) -> None:
        """Zero and negative zero count as positive; the mean is over three elements, not over the block."""
        wire, left, _ = send(backend, "sign_encode", 8, [-3.0, 0.0, 6.0], 0, 16)
        assert wire == struct.pack("<f", 3.0) + bytes([0b001, 0, 0, 0]) and left == [0.0, -3.0, 3.0]
        assert receive(backend, "sign_decode", [wire, wire], 3, 16) == [-6.0, 6.0, 6.0]
        wire, _, _ = send(backend, "sign_encode", 8, [-0.0] * 8 + [-1.0], 0, 16)
        assert wire[4:] == bytes([0, 1, 0, 0])

    def test_sign_l2(self, backend: str) -> None:
        wire, _, _ = send(backend, "sign_encode", 8, [3.0, -5.0, 4.0, 0.0], 1, 16)
        assert wire == struct.pack("<f", 12.5**0.5) + bytes([0b0010, 0, 0, 0])


ENCODERS = {
    "dense_encode": (64, ()),
    "cast_encode": (64, (False,)),
    "sign_encode": (64, (0, 16)),
    "qsgd_encode": (64, (torch.ones(1), 4, 7, False, False, 16, 0, 0)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ENCODERS)
class TestRules:
    def test_a_bad_gradient_leaves_the_residual(self, backend: str, op: str) -> None:
        """Infinities and NaN never enter x or the wire; what was in x is sent or stays."""
        nbytes, tail = ENCODERS[op]
        bad = send(backend, op, nbytes, [1.0, 2.0, 3.0, 4.0], *tail, add=[INF, NAN, 0.0, 1.0])
        good = send(backend, op, nbytes, [1.0, 2.0, 3.0, 4.0], *tail, add=[0.0, 0.0, 0.0, 1.0])
        assert bad[:2] == good[:2] and bad[2] == [1, 1] and good[2] == [0, 1]

    def test_a_bad_number_without_add_is_zero(self, backend: str, op: str) -> None:
        nbytes, tail = ENCODERS[op]
        bad = send(backend, op, nbytes, [1.0, -INF, NAN], *tail)
        assert bad[:2] == send(backend, op, nbytes, [1.0, 0.0, 0.0], *tail)[:2] and bad[2] == [1, 1]

    def test_status_reports_the_gradient(self, backend: str, op: str) -> None:
        """The gradient is ``add`` where there is one, and a negative zero is zero; a denormal is not."""
        nbytes, tail = ENCODERS[op]
        assert send(backend, op, nbytes, [1.0, 2.0], *tail, add=[0.0, -0.0])[2] == [0, 0]
        assert send(backend, op, nbytes, [1.0, 2.0], *tail, add=[0.0, 1e-45])[2] == [0, 1]
        assert send(backend, op, nbytes, [0.0, -0.0], *tail)[2] == [0, 0]

    def test_status_is_never_cleared(self, backend: str, op: str) -> None:
        nbytes, tail = ENCODERS[op]
        status = torch.tensor([6, 2], dtype=torch.uint8)
        wire = torch.zeros(nbytes, dtype=torch.uint8)
        with using(backend):
            getattr(OPS, op)(torch.tensor([INF]), None, wire, row(1), status, 1.0, 1.0, *tail)
        assert status.tolist() == [7, 3]


@pytest.mark.parametrize("backend", BACKENDS)
class TestScales:
    def test_a_tiny_block_stays(self, backend: str) -> None:
        wire, left, status = send(backend, "qsgd_encode", 8, [2**-101, -(2**-140)], *qsgd(4, 7))
        assert wire == bytes([0, 0, 0, 0, 0x77, 0, 0, 0]) and left == [2**-101, -(2**-140)] and status == [0, 1]

    def test_an_overflowing_norm_stays_and_is_reported(self, backend: str) -> None:
        wire, left, status = send(backend, "qsgd_encode", 8, [1e30, -1e30], *qsgd(4, 7, norm2=True))
        assert wire[:4] == bytes(4) and left == pytest.approx([1e30, -1e30]) and status == [1, 1]

    def test_the_largest_number_does_not_overflow(self, backend: str) -> None:
        """127 * (FLT_MAX / 127) may round above FLT_MAX; then the block stays, else it is sent. Never infinity."""
        biggest = torch.finfo(torch.float32).max
        for levels in (1, 3, 7, 127):
            wire, left, _ = send(backend, "qsgd_encode", 8, [biggest, -biggest], *qsgd(8, levels))
            sent = receive(backend, "qsgd_decode", [wire], 2, 8, levels, 16)
            assert torch.isfinite(torch.tensor([sent, left])).all()

    def test_an_overflowing_sum_of_signs(self, backend: str) -> None:
        wire, left, status = send(backend, "sign_encode", 8, [3e38, -3e38], 0, 16)
        assert wire == bytes([0, 0, 0, 0, 0b10, 0, 0, 0]) and status == [1, 1]
        assert left == pytest.approx([3e38, -3e38])

    def test_dense_without_x(self, backend: str) -> None:
        wire, status = torch.zeros(8, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
        table = torch.tensor([[-1, 0, 2, 0, 0, 0, 0, 0]])
        with using(backend):
            OPS.dense_encode(None, torch.tensor([3.0, INF]), wire, table, status, 9.0, 0.5)
        assert bytes(wire.tolist()) == struct.pack("<2f", 1.5, 0.0) and status.tolist() == [1, 1]
