"""Both problems against every choice there is, their promises, and what they refuse."""

from __future__ import annotations

from itertools import product
from math import fsum
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compcomm.adaptive.allocate import allocate, allocate_bytes
from compcomm.adaptive.knapsack import cheapest


def case(draw: np.random.Generator, m: int, options: int, kind: str) -> tuple[Any, Any]:
    """Unrelated tables; or errors that fall as sizes rise, in layers of very different norms."""
    errors, sizes = draw.random((m, options)), draw.integers(1, 10**6, (m, options))
    if kind == "unrelated":
        return errors, sizes
    scale = np.exp(draw.normal(0, 1.5, (m, 1)))
    return np.sort(errors, axis=1)[:, ::-1] * scale, np.sort(sizes, axis=1)


def total(table: Any, choice: Any) -> float:
    """The sum, rounded once."""
    return fsum(table[np.arange(len(table)), choice].tolist())


def best(weights: Any, values: Any, limit: float) -> float:
    """The least sum of values of all choices whose weights are within the limit."""
    rows = np.arange(len(weights))
    every = np.array(list(product(range(weights.shape[1]), repeat=len(weights))))
    value = values[rows, every].sum(axis=1)
    return value[weights[rows, every].sum(axis=1) <= limit].min()


@pytest.mark.parametrize("kind", ["unrelated", "monotone"])
@pytest.mark.parametrize(("buckets", "share"), [(10_000, 0.99), (100, 0.97)])
def test_finds_what_trying_every_choice_finds(kind: str, buckets: int, share: float) -> None:
    draw = np.random.default_rng(0)
    exact = [0, 0]
    for n in range(200):
        errors, sizes = case(draw, 1 + n % 5, 4, kind)
        least, largest = errors.min(axis=1).sum(), errors.max(axis=1).sum()
        budget = least + (largest - least) * draw.random()
        choice = allocate(errors, sizes, budget=budget, buckets=buckets)
        assert total(errors, choice) <= budget
        exact[0] += total(sizes, choice) == best(errors, sizes, budget)

        limit = int(draw.integers(sizes.min(axis=1).sum(), sizes.max(axis=1).sum() + 1))
        choice = allocate_bytes(errors, sizes, limit=limit, buckets=buckets)
        assert total(sizes, choice) <= limit
        exact[1] += total(errors, choice) <= best(sizes, errors, limit) * (1 + 1e-12)
    assert min(exact) >= share * 200, exact


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Few distinct numbers, so that ties, zeros and equal layers abound; some are not available."""
    m, options = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    number = st.one_of(st.integers(0, 4).map(float), st.floats(0, 1e30), st.just(float("nan")), st.just(float("inf")))
    cells = m * options
    errors = np.array(draw(st.lists(number, min_size=cells, max_size=cells))).reshape(m, options)
    sizes = np.array(draw(st.lists(st.integers(1, 9) | st.integers(1, 10**12), min_size=cells, max_size=cells)))
    reference = np.array(draw(st.lists(st.integers(0, options - 1), min_size=m, max_size=m)))
    errors[np.arange(m), reference] = np.nan_to_num(errors[np.arange(m), reference], nan=1.0, posinf=2.0)
    return errors, sizes.reshape(m, options), reference


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(problems(), st.sampled_from([1, 7, 1000]))
def test_never_over_the_limit_and_never_worse_than_the_reference(problem: tuple[Any, Any, Any], buckets: int) -> None:
    errors, sizes, reference = problem
    rows = np.arange(len(errors))
    budget, limit = fsum(errors[rows, reference]), int(sizes[rows, reference].sum())
    choice = allocate(errors, sizes, budget=budget, reference=reference, buckets=buckets)
    assert np.isfinite(errors[rows, choice]).all()
    assert fsum(errors[rows, choice]) <= budget and sizes[rows, choice].sum() <= limit
    choice = allocate_bytes(errors, sizes, limit=limit, reference=reference, buckets=buckets)
    assert np.isfinite(errors[rows, choice]).all()
    assert fsum(errors[rows, choice]) <= budget and sizes[rows, choice].sum() <= limit


def test_a_larger_budget_never_takes_more_bytes() -> None:
    draw = np.random.default_rng(1)
    for _ in range(10):
        errors, sizes = case(draw, 40, 9, "monotone")
        uniform = fsum(errors[:, 4])
        found = [allocate(errors, sizes, budget=a * uniform) for a in (0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)]
        spent = [total(sizes, c) for c in found]
        assert spent == sorted(spent, reverse=True)
        limits = [int(a * sizes[:, 4].sum()) for a in (0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)]
        lost = [total(errors, allocate_bytes(errors, sizes, limit=limit)) for limit in limits]
        assert lost == sorted(lost, reverse=True)


def test_what_rounding_up_rules_out_is_found_all_the_same() -> None:
    """Three layers whose best choice is uniform: a third of the budget each, which rounds up to one bucket of two."""
    errors, sizes = np.array([[2.0, 1.0, 0.0]] * 3), np.array([[1, 2, 8]] * 3)
    plain = cheapest([[0, 1, 2]] * 3, [[7, 1, 0]] * 3, 2, 2)[:, 0]
    assert sum(sizes[0, 2 - c] for c in plain) == 12  # a table that ends at two buckets: twice what uniform sends
    for reference in (None, [1, 1, 1]):
        assert allocate(errors, sizes, budget=3.0, reference=reference, buckets=2).tolist() == [1, 1, 1]

    alone = allocate(errors, sizes, budget=3.0, buckets=1)  # in one bucket all errors are alike
    assert total(errors, alone) <= 3 and total(sizes, alone) == 17
    assert allocate(errors, sizes, budget=3.0, reference=[1, 1, 1], buckets=1).tolist() == [1, 1, 1]


def test_the_reference_stays_where_nothing_is_smaller() -> None:
    errors, sizes = np.array([[2.0, 1.0, 0.0]] * 4), np.array([[5, 6, 7]] * 4)
    assert allocate(errors, sizes, budget=4.0, reference=[1, 1, 1, 1]).tolist() == [1, 1, 1, 1]
    assert allocate(errors, sizes, budget=4.0, reference=[0, 2, 0, 2]).tolist() == [0, 2, 0, 2]
    assert allocate_bytes(errors, sizes, limit=24, reference=[2, 0, 1, 1]).tolist() == [2, 0, 1, 1]


def test_all_layers_equal_never_costs_more_than_uniform() -> None:
    draw = np.random.default_rng(2)
    for m in (1, 3, 50):
        errors, sizes = case(draw, 1, 7, "monotone")
        errors, sizes = np.repeat(errors, m, axis=0), np.repeat(sizes, m, axis=0)
        choice = allocate(errors, sizes, budget=fsum(errors[:, 3]), reference=[3] * m)
        assert total(sizes, choice) <= total(sizes, [3] * m) and total(errors, choice) <= total(errors, [3] * m)


def test_of_equal_sizes_the_least_error_is_taken() -> None:
    errors = np.array([[3.0, 1.0, 2.0, 1.0]] * 3)
    sizes = np.full((3, 4), 10**12)
    assert allocate(errors, sizes, budget=9.0).tolist() == [1, 1, 1]
    assert allocate_bytes(errors, sizes, limit=3 * 10**12).tolist() == [1, 1, 1]


def test_huge_sizes_are_exact() -> None:
    """Choices a byte apart, in two trillion."""
    errors = np.array([[2.0, 1.0], [2.0, 0.5]])
    sizes = np.array([[10**12, 10**12 + 2], [10**12 - 7, 10**12 - 4]])
    assert allocate(errors, sizes, budget=3.0).tolist() == [1, 0]
    assert allocate_bytes(errors, sizes, limit=2 * 10**12 - 4).tolist() == [0, 1]
    assert allocate_bytes(errors, sizes, limit=2 * 10**12 - 5).tolist() == [1, 0]
    assert allocate_bytes(errors, sizes, limit=2 * 10**12 - 6).tolist() == [0, 0]


def test_small_corners() -> None:
    assert allocate([], [], budget=0.0).tolist() == [] == allocate_bytes([], [], limit=0, reference=[]).tolist()
    assert allocate(np.zeros((0, 3)), np.zeros((0, 3), int), budget=1.0, reference=[]).dtype == np.int64
    one = np.array([[2.0], [3.0]]), np.array([[4], [5]])
    assert allocate(*one, budget=5.0).tolist() == [0, 0] == allocate_bytes(*one, limit=9).tolist()
    zeros = np.zeros((3, 3)), np.array([[3, 1, 2]] * 3)
    assert allocate(*zeros, budget=0.0, reference=[0, 0, 0]).tolist() == [1, 1, 1]
    assert allocate_bytes(*zeros, limit=5).tolist() == [1, 1, 1]
    tight = np.array([[0.0, 1.0, 0.0], [1.0, 2.0, 0.0]]), np.array([[3, 1, 2], [3, 2, 4]])
    assert allocate(*tight, budget=0.0).tolist() == [2, 2]
    assert allocate(*tight, budget=float("inf")).tolist() == [1, 1]
    assert allocate_bytes(*tight, limit=3, reference=[1, 1]).tolist() == [1, 1]
    many = np.arange(300.0)[None, ::-1], np.arange(300)[None]
    assert allocate(*many, budget=17.5).tolist() == [282]


def test_what_is_not_available_is_never_chosen() -> None:
    errors = np.array([[np.nan, 1.0, 0.5], [np.inf, np.nan, 2.0]])
    sizes = np.array([[1, 5, 6], [1, 2, 9]])
    assert allocate(errors, sizes, budget=1e9).tolist() == [1, 2]
    assert allocate(errors, sizes, budget=float("inf")).tolist() == [1, 2]
    assert allocate_bytes(errors, sizes, limit=15).tolist() == [2, 2]
    assert allocate_bytes(errors, sizes, limit=14).tolist() == [1, 2]


def test_a_reference_may_be_over_by_a_rounding_of_its_sum() -> None:
    draw = np.random.default_rng(3)
    errors, sizes = case(draw, 200, 4, "monotone")
    short = fsum(errors[:, 2]) * (1 - 1e-15)
    choice = allocate(errors, sizes, budget=short, reference=[2] * 200)
    assert fsum(errors[np.arange(200), choice]) <= fsum(errors[:, 2])
    assert allocate(errors[:, :1], sizes[:, :1], budget=fsum(errors[:, 0]) * (1 - 1e-15)).tolist() == [0] * 200


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"budget": 0.25}, "smallest that can be met is 0.5"),
        ({"budget": -1.0}, "0 or more"),
        ({"budget": float("nan")}, "0 or more"),
        ({"reference": [0, 0]}, "not within it, at 7.0"),
        ({"reference": [1]}, "each of 2 layers"),
        ({"reference": [1, 2]}, "each of 2 layers"),
        ({"reference": [1, -1]}, "each of 2 layers"),
        ({"errors": [[-1.0, 1.0], [1.0, 1.0]]}, "-1.0 is negative"),
        ({"errors": [[1.0, 1.0], [np.nan, np.inf]]}, "layer 1 has no candidate"),
        ({"errors": [[1.0, 1.0]]}, "two tables"),
        ({"sizes": [[1.5, 2.5], [1.0, 2.0]]}, "integers"),
        ({"sizes": [[-1, 2], [1, 2]]}, "integers"),
        ({"buckets": 0}, "buckets=0"),
    ],
)
def test_says_what_is_wrong(changed: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"errors": [[3.0, 0.25], [4.0, 0.25]], "sizes": [[1, 2], [3, 5]], "budget": 4.5}
    allocate(**given)
    with pytest.raises(ValueError, match=words):
        allocate(**{**given, **changed})


def test_says_what_limit_can_be_met() -> None:
    with pytest.raises(ValueError, match=r"allocate_bytes\(limit=3\).*smallest that can be met is 4\."):
        allocate_bytes([[3.0, 0.25], [4.0, 0.25]], [[1, 2], [3, 5]], limit=3)
    with pytest.raises(ValueError, match="not within it, at 7"):
        allocate_bytes([[3.0, 0.25], [4.0, 0.25]], [[1, 2], [3, 5]], limit=6, reference=[1, 1])


def test_the_table_is_the_plain_recursion() -> None:
    """Which fills every capacity of every row; the fast one leaves out what cannot matter."""
    draw = np.random.default_rng(6)
    for n in range(300):
        counts = draw.integers(1, 6, 1 + n % 7)
        weights = [sorted([0, *draw.integers(0, (3, 10, 60)[n % 3], count - 1).tolist()]) for count in counts]
        costs = [draw.integers(0, 9, count).tolist() for count in counts]
        lowest = int(draw.integers(0, 60))
        highest = lowest + int(draw.integers(0, 30))
        least = np.zeros(highest + 1, np.int64)
        for w, c in zip(weights, costs, strict=True):
            before, least = least, np.full(highest + 1, 1000)
            for a, b in zip(w, c, strict=True):
                least[a:] = np.minimum(least[a:], before[: max(0, highest + 1 - a)] + b)
        found = cheapest(weights, costs, lowest, highest)
        for e, choice in enumerate(found.T, lowest):
            assert sum(w[k] for w, k in zip(weights, choice, strict=True)) <= e
            assert sum(c[k] for c, k in zip(costs, choice, strict=True)) == least[e]


def test_costs_beyond_the_table_are_refused() -> None:
    with pytest.raises(OverflowError, match="sum to more"):
        cheapest([[0, 1]], [[1 << 62, 0]], 0, 1)


def test_the_same_again_and_nothing_written() -> None:
    draw = np.random.default_rng(4)
    errors, sizes = case(draw, 60, 9, "monotone")
    sizes //= 10**5  # ties
    for table in (errors, sizes):
        table.setflags(write=False)
    budget, limit = fsum(errors[:, 4]), int(sizes[:, 4].sum())
    found = [allocate(errors, sizes, budget=budget).tolist() for _ in range(3)]
    assert found == [allocate(errors.copy(order="F"), sizes.tolist(), budget=budget).tolist()] * 3
    found = [allocate_bytes(errors, sizes, limit=limit).tolist() for _ in range(3)]
    assert found == [allocate_bytes(errors.tolist(), sizes.astype(np.int32), limit=limit).tolist()] * 3


def test_many_layers_lose_next_to_nothing_to_rounding() -> None:
    """Twenty times the buckets find next to nothing more. What is usual: ``benchmarks/allocation.py``."""
    draw = np.random.default_rng(5)
    errors, sizes = case(draw, 160, 16, "monotone")
    budget, limit = fsum(errors[:, 8]), int(sizes[:, 8].sum())
    coarse = allocate(errors, sizes, budget=budget)
    dual = allocate_bytes(errors, sizes, limit=limit)
    fine = allocate(errors, sizes, budget=budget, buckets=200_000)
    assert total(sizes, coarse) <= total(sizes, fine) * 1.0005
    fine = allocate_bytes(errors, sizes, limit=limit, buckets=200_000)
    assert total(errors, dual) <= total(errors, fine) * 1.0005
