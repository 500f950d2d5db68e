"""Top-k, the decoder: kernels equal the reference, and what a peer sends is checked before it is used as an address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compcomm.ops import native
from tests.ops.sparse_case import IMPLEMENTATIONS, OPS, agree, call, elements, make, nbytes, table_of, using

DAMAGE: dict[str, dict[int, int | None]] = {
    "one too many": {0: 31},
    "far too many": {3: 0x80},
    "minus one": {0: 0xFF, 1: 0xFF, 2: 0xFF, 3: 0xFF},
    "repeated": {6: None},
    "outside": {62: 0xFF, 63: 3},
    "far outside": {62: 0xFF, 63: 0xFF},
}
"""What a byte of a section of 30 of 1000 elements becomes; None: an offset is that before it."""


def messages(table: Tensor, count: int, *, odd: bool = False) -> Tensor:
    """Valid messages, each with other kept elements, some with fewer than they might have, padded to a stride."""
    wires = torch.zeros(count, nbytes(table) + 12 + odd, dtype=torch.uint8)[:, odd:]
    for m in range(count):
        x, counts = make("ties" if m % 2 else "normal", elements(table), m), table[:, 6] // (1 + m % 3)
        args = (x, None, wires[m, : nbytes(table)], table, torch.zeros(3, dtype=torch.uint8), 1.0, 1.0)
        with using("reference"):
            OPS.topk_some_encode(*args, counts, torch.zeros(len(table)))
    return wires[:, : nbytes(table)]


def refusal(name: str, f: Callable[[], Any]) -> str:
    with using(name), pytest.raises(RuntimeError) as error:
        f()
    return str(error.value)


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_decoding_equals_the_reference(count: int) -> None:
    table = table_of([(1000, 30), (0, 0), (65537, 650), (65536, 1), (131072, 2000)])
    wires, before = messages(table, count, odd=count == 2), make("normal", elements(table), 99)
    for accumulate, skip, absent in ((False, [0, 0], None), (True, [0, 1], 0), (False, [0, 1], 4), (True, [0, 0], 4)):
        chosen = table.clone()
        if absent is not None:
            chosen[absent, 0] = -1
        skipped = torch.tensor(skip, dtype=torch.uint8)
        agree(native.isas(), "topk_decode", wires, chosen, skipped, before, 0.3, accumulate)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_decoding_adds_messages_that_overlap(implementation: str) -> None:
    add = torch.tensor([5.0, 0.0, 4.0, 1.0])
    table = torch.tensor([[0, 0, 4, 0, 0, 0, 2, 0]])
    wires = torch.zeros(2, 16, dtype=torch.uint8)
    for m, y in enumerate((add, add.flip(0))):
        with using(implementation):
            OPS.topk_encode(torch.zeros(4), y, wires[m], table, torch.zeros(2, dtype=torch.uint8), 1.0, 1.0, None)
    out, skip = torch.full((4,), 100.0), torch.zeros(1, dtype=torch.uint8)
    with using(implementation):
        OPS.topk_decode(wires, table, skip, out, 0.5, False)
        assert out.tolist() == [2.5, 2.0, 2.0, 2.5]
        OPS.topk_decode(wires, table, skip, out, 0.5, True)
        assert out.tolist() == [5.0, 4.0, 4.0, 5.0]
        OPS.topk_decode(wires, table, skip + 1, out, 0.5, True)
        assert out.tolist() == [5.0, 4.0, 4.0, 5.0]
        OPS.topk_zero(wires[:1], table, out)
        assert out.tolist() == [0.0, 4.0, 0.0, 5.0]
        OPS.topk_decode(wires, table, skip + 1, out, 0.5, False)
        assert out.tolist() == [0.0] * 4


def check_refusals(implementation: str, damage: dict[int, int | None]) -> None:
    """A corrupt row leaves everything as it is, and the first one of the reference's order is named by all."""
    table = table_of([(50, 50), (1000, 30)])
    wires = messages(table, 4)
    wires[1] = wires[3]
    for message in (1, 2):
        for byte, value in damage.items():
            at = int(table[1, 3]) + byte
            if value is None:
                wires[message, at : at + 2] = wires[message, at - 2 : at]
            else:
                wires[message, at] = value
    out, skip = torch.full((elements(table),), 5.0), torch.zeros(2, dtype=torch.uint8)
    for op, args in (("topk_decode", (wires, table, skip, out, 1.0, False)), ("topk_zero", (wires[1:2], table, out))):
        words = [refusal(name, lambda: getattr(OPS, op)(*args)) for name in ("reference", implementation)]  # noqa: B023
        assert words[0].startswith(words[1]), words
        assert f"message {0 if op == 'topk_zero' else 1}, table row 1: the top-k section is corrupt" in words[1]
    assert bool((out == 5.0).all())
    skip[1] = 1  # what nobody decodes is not looked at
    agree((implementation,), "topk_decode", wires, table, skip, out, 1.0, True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_corrupt_message_is_refused_whole(implementation: str, damage: str) -> None:
    check_refusals(implementation, DAMAGE[damage])


def check_random_damage(implementations: tuple[str, ...], tries: int) -> None:
    """Kernel and reference accept and refuse the same messages; what is accepted decodes to the same bits."""
    table = table_of([(1000, 5), (65_600, 6)])
    good, skip, refused = messages(table, 2), torch.zeros(2, dtype=torch.uint8), 0
    g = torch.Generator().manual_seed(5)
    for _ in range(tries):
        wires = good.clone()
        at = torch.randint(nbytes(table), (3,), generator=g)
        wires[1, at] = torch.randint(256, (3,), generator=g, dtype=torch.uint8)
        args = (wires, table, skip, torch.zeros(elements(table)), 1.0, True)
        try:
            call("reference", "topk_decode", *args)
        except RuntimeError as error:
            refused += 1
            words = [refusal(name, lambda: call(name, "topk_decode", *args)) for name in implementations]  # noqa: B023
            assert all(str(error).startswith(said) for said in words), (error, words)
        else:
            agree(implementations, "topk_decode", *args)
    assert 0 < refused < tries


@pytest.mark.skipif(not native.available(), reason="no native library")
def test_random_corruption_never_leaves_the_row() -> None:
    check_random_damage(native.isas(), 150)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_section_may_hold_fewer_than_its_capacity(implementation: str) -> None:
    table = table_of([(1000, 30), (65540, 41), (200_000, 9)])
    sent = torch.tensor([[0, 41, 4], [30, 0, 0], [7, 8, 9], [0, 0, 0]])
    wires, due = torch.zeros(4, nbytes(table), dtype=torch.uint8), torch.zeros(elements(table))
    skip, status = torch.zeros(2, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8)
    for seed, counts in enumerate(sent):
        y = make("normal", elements(table), seed)
        for at, _, numel, *_, count in torch.cat((table[:, :6], counts[:, None]), 1).tolist():
            kept = at + y[at : at + numel].abs().topk(count).indices
            due[kept] += y[kept] * 0.5
        table[:, 1] = -1
        with using("reference"):
            OPS.topk_some_encode(y, None, wires[seed], table, status, 1.0, 1.0, counts, torch.zeros(3))
    out = torch.zeros(elements(table))
    with using(implementation):
        OPS.topk_decode(wires, table, skip, out, 0.5, True)
        assert torch.equal(out, due)
        OPS.topk_zero(wires[:1], table, due)
        assert int((out != due).sum()) == 45
