"""What no feedback scheme takes: refused where it is made, settled or attached, with call, value, reason and cure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import compcomm as cc
from compcomm.feedback.base import FeedbackScheme

TOP = cc.TopK(ratio=0.1)
LAYOUT = cc.Layout.of([("w", (64, 64)), ("b", (64,))])
SCHEMES: list[Callable[..., cc.Reducer]] = [cc.ErrorFeedback, cc.EF21, cc.EControl]
INTEGRATING: list[Callable[..., cc.Reducer]] = [cc.EF21]
"""Those whose mean is a sum over the steps."""


def name(scheme: Callable[..., cc.Reducer]) -> str:
    return scheme.__name__


def refused(make: Callable[[], object], *words: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
@pytest.mark.parametrize(
    "inner", [*[s(TOP) for s in SCHEMES], cc.PowerSGD(4), cc.PowerSGD(4, alternate=True)], ids=repr
)
def test_a_scheme_inside_a_scheme(scheme: Callable[..., cc.Reducer], inner: cc.Reducer) -> None:
    refused(lambda: scheme(inner), f"{name(scheme)}({inner!r})", "no error to feed back", f"use {inner!r} as it is")


@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
def test_what_goes_around_a_scheme_is_not_put_inside(scheme: Callable[..., cc.Reducer]) -> None:
    call = name(scheme)
    refused(lambda: scheme(cc.Warmup(3, TOP)), f"{call}(Warmup(3", f"Use Warmup(3, {call}(TopK(ratio=0.1)))")
    refused(lambda: scheme(cc.Warmup(3, scheme(TOP))), f"{call}(Warmup(3", "has feedback already")
    refused(lambda: scheme(cc.Warmup(3, cc.Warmup(2, TOP))), f"{call}(Warmup(3", f"Use Warmup(2, {call}(TopK")
    refused(lambda: scheme(cc.Partition({"*": TOP})), f"{call}(Partition", f"Partition({{pattern: {call}(...)}})")


@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
def test_what_is_no_contraction(scheme: Callable[..., cc.Reducer]) -> None:
    call = name(scheme)
    refused(lambda: scheme(cc.SignScale("l2")), f"{call}(SignScale(scale='l2'))", "no contraction", "Use SignScale")
    refused(lambda: scheme(cc.Cast(torch.float16)), f"{call}(Cast(float16))", "no contraction", "Use Cast(bfloat16)")
    for route in (cc.AllGather, cc.TwoPhase):
        refused(lambda r=route: scheme(r(cc.SignScale("l2"))), "SignScale(scale='l2')", "no contraction", "Use")
    shared = cc.SharedScale(cc.QSGD(bits=4))
    refused(lambda: scheme(shared), f"{call}({shared!r})", "no contraction", "Use SharedScale(QSGD(bits=4, rounding=")
    refused(lambda: scheme(cc.SharedScale(cc.TernGrad())), "no contraction", "rounding='nearest'")
    assert scheme(cc.AllGather(cc.QSGD(bits=4))) == scheme(cc.AllGather(cc.Contractive(cc.QSGD(bits=4))))


@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
@pytest.mark.parametrize("wrong", [3, "TopK", None, cc.TopK, [TOP]], ids=repr)
def test_what_is_no_reducer(scheme: Callable[..., cc.Reducer], wrong: object) -> None:
    refused(lambda: scheme(wrong), f"{name(scheme)}({wrong!r})", "give a compressor or a reducer")


@pytest.mark.parametrize("scheme", SCHEMES, ids=name)
def test_k_above_a_parameters_size_is_found_before_the_first_step(scheme: Callable[..., cc.Reducer]) -> None:
    refused(lambda: cc.cost(scheme(cc.TopK(k=5000)), LAYOUT, 2), "'w'", "TopK(k=5000)", "4096 elements", "Use ratio")


@pytest.mark.parametrize("scheme", [*INTEGRATING, cc.EControl], ids=name)
def test_what_loses_nothing_needs_no_estimate(scheme: Callable[..., cc.Reducer]) -> None:
    refused(lambda: scheme(cc.Exact()), f"{name(scheme)}(Exact())", "loses nothing", "Use Exact()")


@pytest.mark.parametrize("scheme", INTEGRATING, ids=name)
@pytest.mark.parametrize("world", [2, 3])
def test_an_owner_that_forgets_under_a_scheme_that_sums(scheme: Callable[..., cc.Reducer], world: int) -> None:
    route = cc.TwoPhase(cc.SignScale(), server=False)
    refused(lambda: cc.settle(scheme(route), world), repr(route), "the mean drift away", "Leave server= out")
    other = cc.TwoPhase(cc.SignScale(), server=cc.ErrorFeedback)
    refused(lambda: cc.settle(scheme(other), world), repr(other), "follows its workers", "Leave server= out")
    chosen = cc.settle(scheme(cc.TwoPhase(cc.SignScale())), world)
    assert f"server={name(scheme)}" in repr(chosen)
    assert cc.settle(chosen, world) == chosen


@pytest.mark.parametrize("scheme", INTEGRATING, ids=name)
@pytest.mark.parametrize("world", [1, 3])
def test_an_owner_that_sums_where_no_worker_does(scheme: type[cc.Reducer], world: int) -> None:
    route = cc.TwoPhase(cc.SignScale(), server=scheme)
    for around in (route, cc.Warmup(3, route), cc.Partition({"*": route}), cc.ErrorFeedback(route)):
        refused(lambda r=around: cc.settle(r, world), repr(route), "the owner follows its workers", "Leave server= out")


CASES: list[tuple[Callable[[], object], list[str]]] = [
    *[
        (lambda m=m: cc.EF21(TOP, momentum=m), [f"EF21(momentum={m!r})", "in (0, 1]", "1 takes it alone"])
        for m in (0, 0.0, -0.1, 1.1, float("nan"), float("inf"), True, False, "0.1", None, (0.1,))
    ],
    *[
        (lambda m=m: cc.EControl(TOP, eta=m), [f"EControl(eta={m!r})", "in (0, 1]", "None takes"])
        for m in (0, 0.0, -0.1, 1.1, float("nan"), float("inf"), True, False, "0.1", (0.1,))
    ],
    *[
        (lambda f=f, v=v: cc.ErrorFeedback(TOP, **{f: v}), [f"ErrorFeedback({f}={v!r})", "in (0, 1]", "1 is plain"])
        for f in ("decay", "average")
        for v in (0, 0.0, -0.1, 1.1, float("nan"), float("inf"), True, "0.1", None)
    ],
    *[
        (lambda v=v: cc.ErrorFeedback(TOP, reset=v), [f"ErrorFeedback(reset={v!r})", "an integer", "0 never resets"])
        for v in (-1, 2.0, True, "8", None)
    ],
    (lambda: cc.ErrorFeedback(TOP, dtype=torch.float16), ["dtype=torch.float16", "bfloat16, int8"]),
    (lambda: cc.ErrorFeedback(TOP, dtype="int8"), ["dtype='int8'", "bfloat16, int8"]),
    (lambda: cc.cost(cc.ErrorFeedback(TOP, dtype=torch.float64), LAYOUT, 2), ["gradients are torch.float32"]),
    (lambda: cc.Uncompensated(3), ["Uncompensated(3)", "give a compressor or a reducer"]),
    (lambda: cc.Uncompensated(cc.ErrorFeedback(TOP)), ["Uncompensated(ErrorFeedback(", "it has feedback"]),
    *[
        (lambda s=s: s(TOP, dtype=torch.float64).check(LAYOUT), [f"{s.__name__}(", "float32", "Simulator"])
        for s in (cc.ErrorFeedback, cc.EF21, cc.EControl)
    ],
    (lambda: cc.Simulator("EF21", 2), ["Simulator('EF21')", "no reducer"]),
    (lambda: cc.Simulator(cc.EF21(TOP), 2).step([[]]), ["1 entries for 2 ranks", "mean"]),
    (lambda: cc.Simulator(cc.EF21(TOP), 2).mean([{"w": torch.ones(2, 50)}] * 2, present=1), ["present=1", "[1]"]),
    (lambda: cc.checkpoint.save("x.pt", {"m": [torch.nn.Linear(1, 1)]}), ["a Linear itself", "state_dict()"]),
    (lambda: cc.ErrorFeedback(cc.Uncompensated(TOP)), ["to have none", "Use ErrorFeedback(TopK(ratio=0.1))"]),
    (lambda: cc.EControl(TOP, start=1), ["EControl(start=1)", "True", "False"]),
    (lambda: cc.EControl(TOP, dtype=torch.bfloat16), ["dtype=torch.bfloat16", "torch.float32 or torch.float64"]),
    (lambda: cc.cost(cc.EControl(TOP, dtype=torch.float64), LAYOUT, 2), ["gradients are torch.float32"]),
    (
        lambda: cc.settle(cc.EControl(cc.SharedScale(cc.QSGD(bits=4, rounding="nearest"))), 2),
        ["promises no delta to take as eta", "Give eta="],
    ),
    (lambda: cc.EF21(TOP, start=1), ["EF21(start=1)", "True", "False"]),
    (lambda: cc.EF21(TOP, start="yes"), ["EF21(start='yes')", "True", "False"]),
    (lambda: cc.EF21(TOP, dtype=torch.bfloat16), ["dtype=torch.bfloat16", "torch.float32 or torch.float64"]),
    (lambda: cc.EF21(TOP, dtype="float32"), ["EF21(dtype='float32')", "torch.float32"]),
    (lambda: cc.cost(cc.EF21(TOP, dtype=torch.float64), LAYOUT, 2), ["gradients are torch.float32"]),
    (lambda: cc.settle(cc.EF21(TOP, weights=(0.5, 0.5)), 3), ["weights=(0.5, 0.5)", "2 weights and 3 ranks"]),
    (lambda: cc.EF21(TOP, weights=(0.5, 0.6)), ["weights=(0.5, 0.6)", "add up to 1.1", "divide each by the sum"]),
    (lambda: cc.EF21(TOP, weights=()), ["weights=()", "add up to 0"]),
    (lambda: cc.EF21(TOP, weights=(1.5, -0.5)), ["weights=(1.5, -0.5)", "positive and finite"]),
    (lambda: cc.EF21(TOP, weights=(1.0, 0.0)), ["weights=(1.0, 0.0)", "positive and finite"]),
    (lambda: cc.EF21(TOP, weights=(float("nan"), 1.0)), ["weights=(nan, 1.0)", "positive and finite"]),
    (lambda: cc.EF21(TOP, weights=(float("inf"), 1.0)), ["weights=(inf, 1.0)", "positive and finite"]),
    (lambda: cc.EF21(TOP, weights=(True,)), ["weights=(True,)", "one number per rank"]),
    (lambda: cc.EF21(TOP, weights=("0.5", "0.5")), ["weights=('0.5', '0.5')", "one number per rank"]),
    (lambda: cc.EF21(TOP, weights=0.5), ["weights=0.5", "one number per rank"]),
    (lambda: cc.EF21(TOP, weights=torch.tensor([0.5, 0.5])), ["one number per rank"]),
    (
        lambda: cc.settle(cc.EF21(cc.SharedScale(cc.QSGD(bits=4, rounding="nearest")), weights=(0.5, 0.5)), 2),
        ["takes no weights", "Use AllGather(...) or TwoPhase(...)"],
    ),
    *[
        (lambda r=r: cc.PowerSGD(rank=r), [f"PowerSGD({r!r})", "an integer, 1 or more"])
        for r in (0, -1, 2.0, True, "4", None)
    ],
    *[
        (lambda r=r: cc.PowerSGD(4, min_ratio=r), [f"min_ratio={r!r}", "positive number"])
        for r in (0, -1, float("inf"), float("nan"), True, "2")
    ],
    (lambda: cc.PowerSGD(4, error="global"), ["error='global'", "'aggregate', 'local'"]),
    (lambda: cc.PowerSGD(4, error=None), ["error=None", "'aggregate', 'local'"]),
    (lambda: cc.PowerSGD(4, warm_start=1), ["warm_start=1", "True or False"]),
    (lambda: cc.PowerSGD(4, alternate="yes"), ["alternate='yes'", "True or False"]),
    (lambda: cc.AllGather(cc.PowerSGD(4)), ["AllGather(PowerSGD(4))", "a compressor is needed"]),
    (lambda: cc.TwoPhase(cc.SignScale(), server=cc.PowerSGD), ["server=PowerSGD", "ErrorFeedback", "False"]),
    (lambda: cc.TwoPhase(cc.SignScale(), server="EF21"), ["server='EF21'", "ErrorFeedback", "False"]),
    (lambda: cc.TwoPhase(cc.SignScale(), server=cc.EF21(TOP)), ["server=EF21(TopK(ratio=0.1))", "False"]),
    (lambda: cc.TwoPhase(cc.QSGD(bits=4), server=cc.EF21), ["server=EF21", "use Contractive(QSGD(bits=4))"]),
]  # fmt: skip


class _Ownerless(FeedbackScheme):
    """A scheme of one's own that forgot a line."""

    def memory(self, segment: cc.Segment) -> dict[str, cc.Slot]:
        return {}

    def step(self, source, target, state, ctx):  # type: ignore[no-untyped-def]
        return (yield from self.inner.reduce(source, target, state, ctx))


def test_a_scheme_that_names_no_owner() -> None:
    refused(lambda: _Ownerless(TOP), "_Ownerless(TopK(ratio=0.1))", "Give it owner = ErrorFeedback")
    refused(lambda: cc.TwoPhase(cc.SignScale(), server=_Ownerless), "server=_Ownerless", "False (none)")


@pytest.mark.parametrize(("make", "words"), CASES, ids=lambda v: v[0] if isinstance(v, list) else "")
def test_bad_input(make: Callable[[], object], words: list[str]) -> None:
    refused(make, *words)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_description_with_its_dtype_is_read_back(dtype: torch.dtype) -> None:
    made = cc.EF21(TOP, dtype=dtype)
    assert cc.parse(repr(made)) == made


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8])
def test_a_residuals_dtype_is_read_back(dtype: torch.dtype) -> None:
    made = cc.ErrorFeedback(TOP, dtype=dtype, average=0.5, reset=7)
    assert cc.parse(repr(made)) == made and str(dtype)[6:] in repr(made)
