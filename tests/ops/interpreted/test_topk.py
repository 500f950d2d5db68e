"""Top-k on GPU kernels: the reference's bits from lists of candidates and without them, whatever the sample guesses.

Triton's interpreter takes its time for each program, and little for an element: long rows have large tiles here.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compcomm.ops.reference.philox import philox
from compcomm.ops.reference.sampled import STREAM
from compcomm.ops.reference.sampled import plan as sample_of
from compcomm.ops.scratch import scratch
from compcomm.ops.triton import topk, topk_plan, topk_select
from tests.ops.interpreted.agreement import backends
from tests.ops.sparse_case import agree, call, elements, encoding, make, rows_of_kinds, table_of

BF16, F16 = torch.bfloat16, torch.float16
CPU = torch.device("cpu")
LISTED = (20_000, 100)  # long enough for a list of candidates


def state(table: Tensor, row: int) -> tuple[int, int, int]:
    """(candidates found, elements wanted, room) of a row in the last call of Triton's."""
    words = scratch("top-k state", len(table) * 64, torch.int32, CPU).view(-1, 64)[row]
    return int(words[1]), int(words[2]), int(topk_plan.plan(table, CPU).rows[row, 2])


@pytest.mark.parametrize("backend", backends("topk_encode"))
def test_every_kind_of_numbers(backend: str) -> None:
    """A row of each, one of two tiles, and two with lists, of which one has many ties."""
    shapes = [(63, 31), (0, 0), (50, 7), (60, 9), (70, 8), (40, 3), (50, 4), (4097, 40), (1, 1), LISTED, LISTED]
    kinds = [
        "ties",
        "normal",
        "equal",
        "denormal",
        "huge",
        "one",
        "negative zero",
        "nonfinite",
        "normal",
        "normal",
        "ties",
    ]
    table = table_of(shapes)
    x, add = rows_of_kinds(table, kinds)
    agree([backend], "topk_encode", *encoding(table, x, add, torch.ones(11), decay=0.9, add_scale=-0.25))
    few = table_of(shapes[:6])
    agree([backend], "topk_encode", *encoding(few, rows_of_kinds(few, kinds)[1], None, None, decay=0.5))


@pytest.mark.parametrize("backend", backends("topk_encode"))
def test_several_blocks_with_candidates_and_without(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row keeps a hundredth of two blocks, one half of its elements, and one is exactly a block."""
    for module in (topk_plan, topk_select, topk):
        monkeypatch.setattr(module, "TILE", 16_384)
    for module in (topk_plan, topk_select):
        monkeypatch.setattr(module, "STRETCH", 32_768)
    table = table_of([(70_000, 700), (9000, 4501), (65_536, 65)])
    table[2, 1] = -1
    x, add = make("normal", elements(table), 1), make("ties", elements(table), 2)
    given = encoding(table, x, add, torch.zeros(3))
    agree([backend], "topk_encode", *given)
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
    seen = torch.zeros(n + 1, dtype=torch.bool)
    seen[(starts[:, None] + torch.arange(8)).reshape(-1)] = True
    noise = make("ascending", n + 1)
    outcomes = set()
    for inside, outside in ((1e6, 1.0), (1e-6, 1.0), (1.0, 1.0)):
        agree([backend], "topk_encode", *encoding(table, noise * torch.where(seen, inside, outside), None, None))
        if backend == "triton":
            found, wanted, room = state(table, 0)
            outcomes.add("short" if found < wanted else "long" if found > room else "right")
    few = noise * ~seen
    few[starts[:20]] = 7.0  # the sample sees twenty elements of what it is asked for: everything reaches zero
    agree([backend], "topk_encode", *encoding(table, few, None, None))
    if backend == "triton":
        assert outcomes == {"long", "right"} and state(table, 0)[0] < k


@pytest.mark.parametrize("backend", backends("topk_encode", "topk_sampled_encode", "randk_encode"))
def test_half_precision_and_odd_addresses(backend: str) -> None:
    """A residual of half precision cannot hold y, which is compared and sent in fp32 all the same."""
    tails = {"topk_encode": (None,), "topk_sampled_encode": (3, 1), "randk_encode": (torch.tensor([20.0, 2.0]), 3)}
    long, short = table_of([LISTED, (1, 1)]), table_of([(300, 150), (40, 1)])
    for dtype, given, grad, ops in (
        (BF16, long, torch.float32, ("topk_encode",)),
        (BF16, short, torch.float32, ("topk_sampled_encode", "randk_encode")),
        (F16, short, F16, ("topk_encode",)),
    ):
        x, add = make("nonfinite", elements(given), 1).to(dtype), make("normal", elements(given), 2).to(grad)
        for op in ops:
            agree([backend], op, *encoding(given, x, add, *tails[op], decay=0.7, add_scale=0.3))
    for op, tail in tails.items():
        agree([backend], op, *encoding(short, make("normal", elements(short), 1), None, *tail, decay=0.7, odd=1))


@pytest.mark.parametrize("backend", backends("topk_some_encode"))
def test_a_count_chosen_by_the_caller(backend: str) -> None:
    for shapes, counts in (([(300, 51), LISTED, (9, 0), (0, 0)], [13, 100, 0, 0]), ([(40, 40), LISTED], [0, 7])):
        table = table_of(shapes)
        x, add = make("normal", elements(table), 1), make("ties", elements(table), 2)
        bounds = torch.zeros(len(shapes))
        agree([backend], "topk_some_encode", *encoding(table, x, add, torch.tensor(counts), bounds))
        for wrong in (shapes[0][1] + 1, -1):
            given = encoding(table, x, add, torch.tensor([wrong, *counts[1:]]), bounds)
            with pytest.raises(ValueError, match=rf"topk_some_encode: table row 0: counts is {wrong}, the capacity k "):
                call(backend, "topk_some_encode", *given)


@pytest.mark.parametrize("backend", backends("topk_sampled_encode"))
def test_a_sampled_threshold_equals_the_reference(backend: str) -> None:
    table = table_of([(1, 1), (300, 250), (50, 0), (0, 0), LISTED, LISTED])
    x, add = rows_of_kinds(table, ["normal", "ties", "normal", "normal", "normal", "zero"])
    x[int(table[5, 0]) :] = 0.0
    agree([backend], "topk_sampled_encode", *encoding(table, x, add, 2**33 + 7, 2, decay=0.1, add_scale=-0.5))


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
        agree([backend], "topk_sampled_encode", *encoding(table, y, None, 6, 2))
        if backend == "triton":
            found, wanted, room = state(table, 0)
            outcomes.add("short" if found < wanted else "long" if found > room else "right")
            outcomes.add("fewer" if wanted < k else "all")
    assert backend != "triton" or outcomes == {"short", "long", "right", "fewer", "all"}
