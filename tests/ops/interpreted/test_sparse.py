"""Top-k and rand-k on GPU kernels answer to the reference bit for bit, and refuse what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from compcomm.ops.reference.interleave import order
from compcomm.ops.reference.philox import philox
from compcomm.ops.reference.randk import randk_indices
from compcomm.ops.reference.sampled import STREAM
from compcomm.ops.reference.sampled import plan as sample_of
from compcomm.ops.reference.topk import Row, section
from compcomm.ops.scratch import scratch
from compcomm.ops.triton import faults, topk_plan
from compcomm.ops.triton.launch import launch
from compcomm.ops.triton.randk import permuted
from tests.ops.interpreted.agreement import backends
from tests.ops.sparse_case import elements, make, nbytes, same, table_of, using

OPS = torch.ops.compcomm
BF16 = torch.bfloat16
CPU = torch.device("cpu")
LISTED = (20_000, 100)  # long enough for a list of candidates


def call(backend: str, op: str, *args: Any) -> list[Any]:
    """The arguments after one call on copies of them."""
    args = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
    with using(backend):
        getattr(OPS, op)(*args)
    return list(args)


def agree(backend: str, op: str, *args: Any) -> list[Any]:
    truth, found = call("reference", op, *args), call(backend, op, *args)
    for i, (due, got) in enumerate(zip(truth, found, strict=True)):
        assert not isinstance(due, Tensor) or same(due, got), (op, i)
    return found


def arguments(table: Tensor, x: Tensor, add: Tensor | None, *tail: Any, decay: float = 1.0, add_scale: float = 1.0):
    """Arguments of an encoder with poisoned buffers; the wire lies as its parameter left it."""
    wire, status = torch.full((nbytes(table),), 0xA5, dtype=torch.uint8), torch.tensor([0, 0, 4, 0], dtype=torch.uint8)
    return (x, add, wire, table, status, decay, add_scale, *tail)


def state(table: Tensor, row: int) -> tuple[int, int, int]:
    """(candidates found, elements wanted, room) of a row in the last call of Triton's."""
    words = scratch("top-k state", len(table) * 64, torch.int32, CPU).view(-1, 64)[row]
    return int(words[1]), int(words[2]), int(topk_plan.plan(table, CPU).rows[row, 2])


@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "negative zero", "denormal", "huge", "one", "nonfinite"])
@pytest.mark.parametrize("backend", backends("topk_encode"))
def test_topk_equals_the_reference(backend: str, kind: str) -> None:
    table = table_of([(1, 1), (0, 0), (63, 31), (4097, 40)])
    x, add = make("nonfinite" if kind == "ties" else "normal", elements(table), 1), make(kind, elements(table), 2)
    decay, add_scale = (1.0, 1.0) if kind == "huge" else (0.0, 1.0) if kind == "denormal" else (0.9, -0.25)
    agree(backend, "topk_encode", *arguments(table, x, add, torch.ones(4), decay=decay, add_scale=add_scale))
    if kind in ("normal", "ties", "one"):
        table = table_of([LISTED])
        agree(backend, "topk_encode", *arguments(table, make(kind, elements(table), 2), None, None, decay=0.5))


@pytest.mark.parametrize("backend", backends("topk_encode"))
def test_topk_of_several_blocks_with_candidates_and_without(backend: str) -> None:
    """One row keeps a hundredth of five stretches and two blocks, one half of three tiles."""
    table = table_of([(70_000, 700), (9000, 4501), (65_536, 65)])
    table[2, 1] = -1
    x, add = make("normal", elements(table), 1), make("ties", elements(table), 2)
    agree(backend, "topk_encode", *arguments(table, x, add, torch.zeros(3)))
    if backend == "triton":
        found, wanted, room = state(table, 0)
        assert wanted == 700 <= found <= room, "the list was used"
        assert state(table, 1)[2] == 0, "no list pays for half of the elements"


@pytest.mark.parametrize("backend", backends("topk_encode"))
def test_a_guess_that_misleads(backend: str) -> None:
    """Large elements where the sample looks, or small ones: the list is too short or too long, the result is right."""
    n, k = LISTED
    table = table_of([(n, k)], add=False, gap=0)
    number = torch.arange(1024)
    cell = n // 1024
    starts = number * cell + ((number * 0x9E3779B9 & 0xFFFFFFFF) * (cell - 7) >> 32)
    sampled = torch.zeros(n + 1, dtype=torch.bool)
    sampled[(starts[:, None] + torch.arange(8)).reshape(-1)] = True
    noise = make("ascending", n + 1)
    outcomes = set()
    for inside, outside in ((1e6, 1.0), (1e-6, 1.0), (1.0, 0.0), (1.0, 1.0)):
        agree(backend, "topk_encode", *arguments(table, noise * torch.where(sampled, inside, outside), None, None))
        if backend == "triton":
            found, wanted, room = state(table, 0)
            outcomes.add("short" if found < wanted else "long" if found > room else "right")
    few = noise * ~sampled
    few[starts[:20]] = 7.0  # the sample sees twenty elements of what it is asked for: everything reaches zero
    agree(backend, "topk_encode", *arguments(table, few, None, None))
    if backend == "triton":
        assert outcomes == {"long", "right"} and state(table, 0)[0] < k


@pytest.mark.parametrize("backend", backends("topk_encode", "topk_sampled_encode", "randk_encode"))
def test_half_precision_and_odd_addresses(backend: str) -> None:
    """A residual of half precision cannot hold y, which is compared and sent in fp32 all the same."""
    add = make("normal", 24_000, 2)
    for dtype, grad, shapes in ((BF16, add, [LISTED, (1, 1)]), (torch.float16, add.half(), [(300, 150), (40, 1)])):
        table, gain = table_of(shapes), torch.tensor([20.0, 2.0])
        head = arguments(table, make("nonfinite", 24_000, 1).to(dtype), grad, decay=0.7, add_scale=0.3)
        agree(backend, "topk_encode", *head, torch.zeros(2))
        agree(backend, "topk_sampled_encode", *head, 3, 1)
        agree(backend, "randk_encode", *head, gain, 3)
    x = make("normal", 24_000, 1)
    for op, tail in (("topk_encode", (None,)), ("topk_sampled_encode", (3, 1)), ("randk_encode", (gain, 3))):
        found = []
        for name in ("reference", backend):
            wire, left = torch.zeros(nbytes(table) + 1, dtype=torch.uint8), x.clone()
            with using(name):
                getattr(OPS, op)(left, None, wire[1:], table, torch.zeros(4, dtype=torch.uint8), 0.7, 1.0, *tail)
            found.append((wire, left))
        assert same(found[0][0], found[1][0]) and same(found[0][1], found[1][1]), op


@pytest.mark.parametrize("backend", backends("topk_some_encode"))
def test_a_count_chosen_by_the_caller(backend: str) -> None:
    table = table_of([(5000, 51), LISTED, (40, 40), (9, 0), (0, 0)])
    x, add = make("normal", elements(table), 1), make("ties", elements(table), 2)
    for counts in ([13, 100, 0, 0, 0], [51, 7, 40, 0, 0]):
        agree(backend, "topk_some_encode", *arguments(table, x, add, torch.tensor(counts), torch.zeros(5)))
    for wrong in (52, -1):
        tail = torch.tensor([wrong, 0, 0, 0, 0]), torch.zeros(5)
        with pytest.raises(ValueError, match=rf"topk_some_encode: table row 0: counts is {wrong}, the capacity k 51"):
            call(backend, "topk_some_encode", *arguments(table, x, add, *tail))


@pytest.mark.parametrize("kind", ["normal", "ties", "zero"])
@pytest.mark.parametrize("backend", backends("topk_sampled_encode"))
def test_a_sampled_threshold_equals_the_reference(backend: str, kind: str) -> None:
    table = table_of([(1, 1), (300, 250), (50, 0), (0, 0), LISTED])
    x, add = make("normal", elements(table), 1), make(kind, elements(table), 2)
    agree(backend, "topk_sampled_encode", *arguments(table, x, add, 2**33 + 7, 2, decay=0.1, add_scale=-0.5))


@pytest.mark.parametrize("backend", backends("topk_sampled_encode"))
def test_a_sample_that_misleads(backend: str) -> None:
    """Large elements where the sample looks, or small ones: the threshold is far too high or far too low."""
    n, k = 20_000, 1000
    table = table_of([(n, k)], add=False, gap=0)
    stride, _ = sample_of(n, k)
    offset, key = table[0, 4:6].tolist()
    start = int(philox(torch.tensor([offset]), 6, 2, STREAM, key)[0]) * stride >> 32
    noise, outcomes = make("normal", n), set()
    for inside, outside in ((3.0, 1.0), (0.95, 1.0), (0.01, 1.0), (1.0, 1e-38)):
        y = noise * outside
        y[start::stride] = noise[start::stride] * inside
        agree(backend, "topk_sampled_encode", *arguments(table, y, None, 6, 2))
        if backend == "triton":
            found, wanted, room = state(table, 0)
            outcomes.add("short" if found < wanted else "long" if found > room else "right")
            outcomes.add("fewer" if wanted < k else "all")
    assert backend != "triton" or outcomes == {"short", "long", "right", "fewer", "all"}


@pytest.mark.parametrize(
    ("backend", "op"),
    [
        (b, op)
        for op in ("topk_encode", "topk_some_encode", "topk_sampled_encode", "randk_encode")
        for b in backends(op)
    ],
)
def test_a_table_that_does_not_fit_is_explained(backend: str, op: str) -> None:
    tails = {"topk_encode": (None,), "topk_some_encode": (torch.zeros(1).long(), torch.zeros(1))}
    tail = tails.get(op, (1, 2) if op == "topk_sampled_encode" else (torch.ones(1), 1))
    for column, value, words in ((6, 11, "k"), (2, -1, "numel"), (0, 1, "outside x"), (3, 4, "outside the wire")):
        table = torch.tensor([[0, 0, 10, 0, 0, 0, 3, 0]])
        table[0, column] = value
        wire = torch.zeros(12 if op == "randk_encode" else 24, dtype=torch.uint8)
        status = torch.zeros(2, dtype=torch.uint8)
        with pytest.raises(ValueError, match=rf"{op}: table row 0.*{words}"):
            call(backend, op, torch.zeros(10), None, wire, table, status, 1.0, 1.0, *tail)


DECODED = [(1000, 31), (0, 0), (66_000, 700), (65_536, 1)]


def messages(table: Tensor, count: int, *, odd: bool = False) -> Tensor:
    """Valid messages, each with other kept elements, some with fewer than they might have, padded to a stride."""
    wires = torch.zeros(count, nbytes(table) + 12 + odd, dtype=torch.uint8)[:, odd:]
    for m in range(count):
        x, counts = make("ties" if m % 2 else "normal", elements(table), m), table[:, 6] // (1 + m % 3)
        args = (x, None, wires[m, : nbytes(table)], table, torch.zeros(3, dtype=torch.uint8), 1.0, 1.0)
        with using("reference"):
            OPS.topk_some_encode(*args, counts, torch.zeros(len(table)))
    return wires[:, : nbytes(table)]


@pytest.mark.parametrize("backend", backends("topk_decode"))
def test_decoding_equals_the_reference(backend: str) -> None:
    table = table_of(DECODED)
    wires, before = messages(table, 5), make("normal", elements(table), 99)
    uneven = messages(table, 2, odd=True)
    skip = torch.tensor([0, 1], dtype=torch.uint8)
    for accumulate in (False, True):
        for dtype in (torch.float32, BF16):
            for some, skipped, absent in ((wires, skip * 0, None), (wires[:1], skip, 2), (uneven, skip * 0, 0)):
                chosen = table.clone()
                if absent is not None:
                    chosen[absent, 0] = -1
                agree(backend, "topk_decode", some, chosen, skipped, before.to(dtype), 0.3, accumulate)
    for some in (wires, uneven):
        agree(backend, "topk_zero", some[:1], table, before)
        agree(backend, "topk_zero", some[1:2], table, before.to(BF16))


def refusal(name: str, f: Callable[[], Any]) -> str:
    with using(name), pytest.raises(RuntimeError) as error:
        f()
    return str(error.value)


@pytest.mark.parametrize("backend", backends("topk_decode"))
@pytest.mark.parametrize(
    "damage",
    [{0: 31}, {3: 0x80}, {0: 0xFF, 1: 0xFF, 2: 0xFF, 3: 0xFF}, {6: None}, {62: 0xFF, 63: 3}, {62: 0xFF, 63: 0xFF}],
    ids=["one too many", "far too many", "minus one", "repeated", "outside", "far outside"],
)
def test_a_corrupt_message_is_refused_whole(backend: str, damage: dict[int, int | None]) -> None:
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
        words = [refusal(name, lambda: getattr(OPS, op)(*args)) for name in ("reference", backend)]  # noqa: B023
        assert words[0].startswith(words[1]), words
        assert f"message {0 if op == 'topk_zero' else 1}, table row 1: the top-k section is corrupt" in words[1]
    assert bool((out == 5.0).all())
    assert backend != "triton" or int(faults.sticky(CPU)) == 0, "what was raised is forgotten"
    skip[1] = 1  # what nobody decodes is not looked at
    agree(backend, "topk_decode", wires, table, skip, out, 1.0, True)


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
    table = table_of([(1000, 5), (65_600, 6)])
    good, refused, tries = messages(table, 2), 0, 25
    g = torch.Generator().manual_seed(5)
    for _ in range(tries):
        wires = good.clone()
        at = torch.randint(nbytes(table), (3,), generator=g)
        wires[1, at] = torch.randint(256, (3,), generator=g, dtype=torch.uint8)
        out = []
        for name in ("reference", backend):
            target = torch.zeros(elements(table))
            with using(name):
                try:
                    OPS.topk_decode(wires, table, torch.zeros(2, dtype=torch.uint8), target, 1.0, True)
                except RuntimeError as error:
                    refused += 1
                    out.append(str(error))
            out.append(target)
        half = len(out) // 2
        assert same(out[half - 1], out[-1])
        assert all(a.startswith(b) for a, b in zip(out[: half - 1], out[half:-1], strict=True))
    assert 0 < refused < 2 * tries and refused % 2 == 0


@pytest.mark.parametrize("ways", [1, 2, 5])
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
        agree(backend, "topk_scatter", wire[None], table, pieces, out, 0.5, 16)
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


@triton.jit
def _indices(out, numel, key, offset, step, k, WIDE: tl.constexpr):
    m = tl.arange(0, WIDE).to(tl.int64)
    i = permuted(tl.where(m < k, m, 0), tl.load(numel), tl.load(key), tl.load(offset), step)
    tl.store(out + m, i, mask=m < k)


def test_the_permutation_equals_the_reference() -> None:
    for numel in (1, 256, 257, 65_537, 2**32, 2**38 + 1, 2**40):
        for key, offset, step in ((0, 0, 0), (-5, 2**33 + 7, 2**40 + 1))[: 1 + (numel > 256)]:
            k = min(numel, 32)
            out = torch.zeros(k, dtype=torch.int64)
            values = [torch.tensor([v]) for v in (numel, key, offset)]
            launch(_indices, 1, out, *values, step, k, WIDE=32)
            assert torch.equal(out, randk_indices(key, numel, k, offset, step)), numel


@pytest.mark.parametrize("kind", ["normal", "nonfinite", "huge"])
@pytest.mark.parametrize("backend", backends("randk_encode"))
def test_randk_encoding_equals_the_reference(backend: str, kind: str) -> None:
    table = table_of([(1, 1), (0, 0), (257, 257), (5000, 1030)])
    x, add, gain = make("normal", elements(table), 1), make(kind, elements(table), 2), torch.tensor([1e30, 1, 1, 5.0])
    agree(backend, "randk_encode", *arguments(table, x, add, gain, 3, decay=0.9, add_scale=0.5))
    if kind == "normal":
        agree(backend, "randk_encode", *arguments(table, add, None, gain, 2**33 + 1, decay=0.9))


@pytest.mark.parametrize("backend", backends("randk_decode"))
def test_randk_decoding_equals_the_reference(backend: str) -> None:
    table = table_of([(1, 1), (0, 0), (257, 257), (3000, 1030)])
    x = make("normal", elements(table), 1)
    wires = torch.zeros(3, nbytes(table) + 1, dtype=torch.uint8)[:, 1:]
    wires.copy_(make("normal", 3 * nbytes(table) // 4, 2).view(torch.uint8).view(3, -1))
    for count, accumulate, absent, skip in ((3, False, 0, [0, 1]), (2, True, -1, [0, 0])):
        chosen, skipped = table.clone(), torch.tensor(skip, dtype=torch.uint8)
        if absent >= 0:
            chosen[absent, 0] = -1
        for out in (x, x.to(BF16)):
            agree(backend, "randk_decode", wires[:count], chosen, skipped, out, 0.3, accumulate, 3)
