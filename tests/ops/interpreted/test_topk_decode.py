"""Top-k messages on GPU kernels: decoded as the reference does, and refused where it refuses."""

from __future__ import annotations

import pytest
import torch
import triton

from compcomm.ops.reference.interleave import order
from compcomm.ops.reference.topk import Row, section
from compcomm.ops.triton import faults
from compcomm.ops.triton.launch import launch
from tests.ops.interpreted.agreement import backends
from tests.ops.sparse_case import OPS, agree, elements, make, table_of, using
from tests.ops.test_topk_decode import DAMAGE, check_random_damage, check_refusals, messages, refusal

BF16 = torch.bfloat16
CPU = torch.device("cpu")


@pytest.mark.parametrize("backend", backends("topk_decode"))
def test_decoding_equals_the_reference(backend: str) -> None:
    table = table_of([(1000, 31), (0, 0), (66_000, 700), (65_536, 1)])
    wires, uneven, before = messages(table, 3), messages(table, 2, odd=True), make("normal", elements(table), 99)
    none, some = torch.zeros(2, dtype=torch.uint8), torch.tensor([0, 1], dtype=torch.uint8)
    for given, skip, absent, out, accumulate in (
        (wires, none, None, before, False),
        (wires[:1], some, 2, before.to(BF16), True),
        (uneven, none, 0, before.to(BF16), False),
        (uneven, some, 0, before, True),
        (uneven, none, 2, before.to(BF16), True),
    ):
        chosen = table.clone()
        if absent is not None:
            chosen[absent, 0] = -1
        agree([backend], "topk_decode", given, chosen, skip, out, 0.3, accumulate)
    agree([backend], "topk_zero", wires[:1], table, before)
    agree([backend], "topk_zero", uneven[1:2], table, before.to(BF16))


@pytest.mark.parametrize("backend", backends("topk_decode"))
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_corrupt_message_is_refused_whole(backend: str, damage: str) -> None:
    check_refusals(backend, DAMAGE[damage])
    assert backend != "triton" or int(faults.sticky(CPU)) == 0, "what was raised is forgotten"


@pytest.mark.parametrize("backend", backends("topk_decode"))
def test_the_first_fault_in_the_order_of_the_reference(backend: str) -> None:
    table = table_of([(50, 5), (1000, 30)])
    wires = messages(table, 3)
    wires[2, int(table[0, 3])] = wires[0, int(table[1, 3])] = 99
    args = (wires, table, torch.zeros(2, dtype=torch.uint8), torch.zeros(elements(table)), 1.0, False)
    words = [refusal(name, lambda: OPS.topk_decode(*args)) for name in ("reference", backend)]
    assert words[0].startswith(words[1]) and "message 2, table row 0" in words[1]


def test_a_device_remembers_its_first_fault() -> None:
    """On GPUs nobody looks in the call: the sticky word keeps the first until somebody raises it."""
    word = faults.sticky(CPU)
    number = faults.source(lambda message, row: f"message {message}, row {row}")
    for row, message in ((70_000, 1023), (2, 1)):
        call_word = faults.fresh(CPU)
        launch(_note, 1, call_word, word, number, message + 1, row)
        launch(_note, 1, call_word, word, number, message, row)
    with pytest.raises(RuntimeError, match="message 1023, row 70000"):
        faults.raise_now(CPU)
    faults.raise_now(CPU)


@triton.jit
def _note(word, sticky, number, message, row):
    faults.report(word, number, message, row)
    if message < 1024:
        faults.remember(word, sticky)


@pytest.mark.parametrize("backend", backends("topk_decode"))
def test_random_corruption_never_leaves_the_row(backend: str) -> None:
    check_random_damage((backend,), 12)


@pytest.mark.parametrize("ways", [1, 5])
@pytest.mark.parametrize("backend", backends("topk_scatter"))
def test_selections_come_back_to_their_places(backend: str, ways: int) -> None:
    lines, lengths, byte = [], [], 4
    for n, at in ((1000, 5), (4099, 1010)):
        for share in range(3):
            low, high = n * share // 3, n * (share + 1) // 3
            row = Row(at, -1, high - low, byte, 0, 0, 7, 0)
            lines.append(list(row))
            lengths.append([n, low, ways])
            byte += section(row) + 4
    table, pieces, wire = torch.tensor(lines), torch.tensor(lengths), torch.zeros(byte, dtype=torch.uint8)
    own = table.clone()
    own[:, 0] = torch.arange(len(own)) * 1400
    x, status = make("normal", 9000), torch.zeros(2, dtype=torch.uint8)
    with using("reference"):
        OPS.topk_encode(x, None, wire, own, status, 1.0, 1.0, None)
    assert not torch.equal(order(4099, 16, 5), order(4099, 16, 2))
    for out in (torch.ones(5200), torch.ones(5200, dtype=BF16)):
        agree([backend], "topk_scatter", wire[None], table, pieces, out, 0.5, 16)
    chosen, out = table.clone(), torch.ones(5200)
    with using(backend):  # the same tensors of lengths and rows, of which the rows change
        OPS.topk_scatter(wire[None], chosen, pieces, out, 0.5, 16)
        chosen[0, 0] = -1
        OPS.topk_scatter(wire[None], chosen, pieces, out, -0.5, 16)
        assert int(((out - 1).abs() > 1e-5).sum()) == 7
        for wrong in ([200, 0, 2], [6000, 0, 2], [1000, 900, 1], [-1, 0, 2], [1000, -1, 1], [1000, 0, 0]):
            with pytest.raises(ValueError, match="row 0"):
                OPS.topk_scatter(wire[None], table, torch.tensor([wrong, *lengths[1:]]), out, 1.0, 16)
    wire[lines[2][3]] = 9
    words = [
        refusal(n, lambda: OPS.topk_scatter(wire[None], table, pieces, out, 1.0, 16)) for n in ("reference", backend)
    ]
    assert words[0].startswith(words[1]) and "row 2" in words[1]
