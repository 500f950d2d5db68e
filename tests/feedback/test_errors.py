"""What no feedback scheme takes: refused where it is made, settled or attached, with call, value, reason and cure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import compcomm as cc
from compcomm.feedback.base import FeedbackScheme
from tests.refusals import refusals, refused

TOP = cc.TopK(ratio=0.1)
LAYOUT = cc.Layout.of([("w", (64, 64)), ("b", (64,))])
SCHEMES: list[Callable[..., cc.Reducer]] = [cc.ErrorFeedback, cc.EF21, cc.EControl]
INTEGRATING: list[Callable[..., cc.Reducer]] = [cc.EF21]
"""Those whose mean is a sum over the steps."""


def name(scheme: Callable[..., cc.Reducer]) -> str:
    return scheme.__name__


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


class _Ownerless(FeedbackScheme):
    """A scheme of one's own that forgot a line."""

    def memory(self, segment: cc.Segment) -> dict[str, cc.Slot]:
        return {}

    def step(self, source, target, state, ctx):  # type: ignore[no-untyped-def]
        return (yield from self.inner.reduce(source, target, state, ctx))


def test_a_scheme_that_names_no_owner() -> None:
    refused(lambda: _Ownerless(TOP), "_Ownerless(TopK(ratio=0.1))", "Give it owner = ErrorFeedback")
    refused(lambda: cc.TwoPhase(cc.SignScale(), server=_Ownerless), "server=_Ownerless", "False (none)")


@refusals(
    """
EF21(TOP, momentum=$) => EF21(momentum=$) | in (0, 1] | 1 takes it alone
    for $ in 0; 0.0; -0.1; 1.1; nan; inf; True; False; '0.1'; None; (0.1,)
EControl(TOP, eta=$) => EControl(eta=$) | in (0, 1] | None takes
    for $ in 0; 0.0; -0.1; 1.1; nan; inf; True; False; '0.1'; (0.1,)
ErrorFeedback(TOP, decay=$) => ErrorFeedback(decay=$) | in (0, 1] | 1 is plain for $ in 0; -0.1; 1.1; nan; True; '0.1'
ErrorFeedback(TOP, average=$) => ErrorFeedback(average=$) | in (0, 1] | 1 is plain for $ in 0.0; 1.1; inf; True; None
ErrorFeedback(TOP, reset=$) => ErrorFeedback(reset=$) | an integer | 0 never resets for $ in -1; 2.0; True; '8'; None
ErrorFeedback(TOP, dtype=$) => dtype=$ | bfloat16, int8 for $ in torch.float16; 'int8'
cost($(TOP, dtype=torch.float64), LAYOUT, 2) => gradients are torch.float32 for $ in ErrorFeedback; EF21; EControl
$(TOP, dtype=torch.float64).check(LAYOUT) => $( | float32 | Simulator for $ in ErrorFeedback; EF21; EControl
Uncompensated(3) => Uncompensated(3) | give a compressor or a reducer
Uncompensated(ErrorFeedback(TOP)) => Uncompensated(ErrorFeedback( | it has feedback
Simulator('EF21', 2) => Simulator('EF21') | no reducer
Simulator(EF21(TOP), 2).step([[]]) => 1 entries for 2 ranks | mean
Simulator(EF21(TOP), 2).mean([{'w': torch.ones(2, 50)}] * 2, present=1) => present=1 | [1]
checkpoint.save('x.pt', {'m': [torch.nn.Linear(1, 1)]}) => a Linear itself | state_dict()
ErrorFeedback(Uncompensated(TOP)) => to have none | Use ErrorFeedback(TopK(ratio=0.1))
EControl(TOP, start=1) => EControl(start=1) | True | False
EControl(TOP, dtype=torch.bfloat16) => dtype=torch.bfloat16 | torch.float32 or torch.float64
settle(EControl(SharedScale(QSGD(bits=4, rounding='nearest'))), 2) => promises no delta to take as eta | Give eta=
EF21(TOP, start=$) => EF21(start=$) | True | False for $ in 1; 'yes'
EF21(TOP, dtype=torch.bfloat16) => dtype=torch.bfloat16 | torch.float32 or torch.float64
EF21(TOP, dtype='float32') => EF21(dtype='float32') | torch.float32
Simulator(EF21(TOP), 2).mean([{'w': torch.ones(2, 50).double()}] * 2) => dtype=float64
settle(EF21(TOP, weights=(0.5, 0.5)), 3) => weights=(0.5, 0.5) | 2 weights and 3 ranks
EF21(TOP, weights=(0.5, 0.6)) => weights=(0.5, 0.6) | add up to 1.1 | divide each by the sum
EF21(TOP, weights=()) => weights=() | add up to 0
EF21(TOP, weights=$) => weights=$ | positive and finite for $ in (1.5, -0.5); (1.0, 0.0); (nan, 1.0); (inf, 1.0)
EF21(TOP, weights=$) => weights=$ | one number per rank for $ in (True,); ('0.5', '0.5'); 0.5
EF21(TOP, weights=torch.tensor([0.5, 0.5])) => one number per rank
settle(EF21(SharedScale(QSGD(bits=4, rounding='nearest')), weights=(0.5, 0.5)), 2)
    => takes no weights | Use AllGather(...) or TwoPhase(...)
PowerSGD(rank=$) => PowerSGD($) | an integer, 1 or more for $ in 0; -1; 2.0; True; '4'; None
PowerSGD(4, min_ratio=$) => min_ratio=$ | positive number for $ in 0; -1; inf; nan; True; '2'
PowerSGD(4, error=$) => error=$ | 'aggregate', 'local' for $ in 'global'; None
PowerSGD(4, warm_start=1) => warm_start=1 | True or False
PowerSGD(4, alternate='yes') => alternate='yes' | True or False
AllGather(PowerSGD(4)) => AllGather(PowerSGD(4)) | a compressor is needed
TwoPhase(SignScale(), server=PowerSGD) => server=PowerSGD | ErrorFeedback | False
TwoPhase(SignScale(), server='EF21') => server='EF21' | ErrorFeedback | False
TwoPhase(SignScale(), server=EF21(TOP)) => server=EF21(TopK(ratio=0.1)) | False
TwoPhase(QSGD(bits=4), server=EF21) => server=EF21 | use Contractive(QSGD(bits=4))
""",
    TOP=TOP,
    LAYOUT=LAYOUT,
    checkpoint=cc.checkpoint,
)
def test_bad_input(call: Any, words: list[str]) -> None:
    refused(call, *words)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_description_with_its_dtype_is_read_back(dtype: torch.dtype) -> None:
    made = cc.EF21(TOP, dtype=dtype)
    assert cc.parse(repr(made)) == made


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int8])
def test_a_residuals_dtype_is_read_back(dtype: torch.dtype) -> None:
    made = cc.ErrorFeedback(TOP, dtype=dtype, average=0.5, reset=7)
    assert cc.parse(repr(made)) == made and str(dtype)[6:] in repr(made)
