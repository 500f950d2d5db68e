"""Tables of methods, routes and schemes say what the code says."""

from __future__ import annotations

import re

import pytest
import torch

import compcomm as cc

from .pages import read, rows, sent

METHODS = rows(read("docs/methods/compressors/index.md"), "| method |")
ROUTES = {"all-reduce": cc.AllReduce, "all-gather": cc.AllGather, "two-phase": cc.TwoPhase, "as c": cc.TwoPhase}


@pytest.mark.parametrize("cells", METHODS, ids=[cells[0] for cells in METHODS])
def test_the_table_of_compressors(cells: list[str]) -> None:
    example = cells[0].replace("(ratio)", "(0.01)").replace("bits", "bits=4").replace("(c)", "(QSGD(bits=4))")
    made = cc.parse(example)
    linear, unbiased, delta, route = cells[3], cells[4], cells[5], cells[6]
    if "as c" not in linear:
        assert made.linear is (not linear.startswith("no")), linear
    assert made.unbiased is unbiased.startswith("yes"), unbiased
    assert (made.delta(1 << 20) is None) is (delta == "none" or "where positive" in delta), delta
    match = re.fullmatch(r"([\d.]+|bits)( \+ (\d+)/(\d+))?", cells[2])
    if match:
        code = 4.0 if match[1] == "bits" else float(match[1])
        due = code + (int(match[3]) / int(match[4]) if match[2] else 0)
        assert made.section(1 << 20) * 8 / (1 << 20) == pytest.approx(due, abs=1e-3), cells[2]
    omega = re.search(r"omega ([\d./]+)( at 4 bits)?\)", unbiased)
    if omega:
        assert made.omega(1 << 20) == pytest.approx(eval(omega[1]), rel=0.01), unbiased
    promise = re.match(r"([\d./]+)( at 4 bits)?( \(|$)", delta)
    if promise:
        assert made.delta(1 << 20) == pytest.approx(eval(promise[1]), rel=0.02), delta
    assert isinstance(cc.settle(made, 8), ROUTES[route]), route


def test_every_exported_compressor_is_in_the_table() -> None:
    found = {cells[0].partition("(")[0] for cells in METHODS}
    exported = {
        name
        for name in cc.__all__
        if isinstance(getattr(cc, name), type) and issubclass(getattr(cc, name), cc.Compressor)
    }
    assert exported - {"Compressor"} == found


def test_the_table_of_routes() -> None:
    found = rows(read("docs/methods/routes/index.md"), "| route |")
    assert len(found) == 5
    for call, _, megabytes, _ in found:
        assert megabytes == f"{sent(call, 64) / 1e6:.2f}", call


def test_the_table_of_schemes() -> None:
    """State per element, and whether a change of the learning rate concerns it."""
    made = {
        "ErrorFeedback(c)": cc.ErrorFeedback(cc.SignScale()),
        "EF21(c)": cc.EF21(cc.SignScale()),
        "EControl(c)": cc.EControl(cc.SignScale()),
        "DGC(c)": cc.DGC(cc.TopK(0.01)),
        "PowerSGD(rank)": cc.PowerSGD(4),
        "Uncompensated(c)": cc.Uncompensated(cc.QSGD(bits=4)),
    }
    found = rows(read("docs/methods/feedback/index.md"), "| scheme |")
    assert [cells[0] for cells in found] == list(made)
    (segment,) = cc.Layout.of([("w", (64, 64))]).segments
    for (call, _, state, rate, _), scheme in zip(found, made.values(), strict=True):
        slots = cc.settle(scheme, 2).slots(segment, 2)
        whole = [s for s in slots.values() if s.numel is None]
        assert 4 * len(whole) == int(re.match(r"\d+", state)[0]), call  # pyright: ignore[reportOptionalSubscript]
        assert any(s.pending for s in slots.values()) is (rate == "rescale_error"), call


def test_what_may_be_averaged_several_times_per_step() -> None:
    found = rows(read("docs/guides/discarding.md"), "| scheme |")
    assert len(found) == 6
    for call, said in found:
        accumulates = cc.settle(cc.parse(call), 2).traits.accumulates
        assert said == ("right" if accumulates else "wrong: use `passes"), call


def test_the_table_of_what_to_try_where() -> None:
    """The README's: bytes of ResNet-50's shapes in DDP's buckets, as the plan above it has them."""
    found = rows(read("README.md"), "| where |")
    counted = 0
    for _, call, *said in found:
        if "x fewer" in said[0]:
            assert said == [f"{sent(None, world) / sent(call, world):.1f}x fewer" for world in (2, 64)], call
            counted += 1
        elif "optim" in call:
            bits = cc.SignScale().section(1 << 20) * 8 / (1 << 20)
            assert said == [f"{bits:.2f} bits per element"] * 2
        else:
            cc.Auto() if call == "Auto()" else cc.parse(call)
    assert counted == 7


def test_the_choice_of_routes() -> None:
    """ "Chosen for" on the routes' page, for every kind of compressor."""
    for example, world, route in (
        (cc.RandK(0.01), 8, cc.AllReduce),
        (cc.Sketch(ratio=0.1), 2, cc.AllReduce),
        (cc.TopK(0.01), 8, cc.AllGather),
        (cc.QSGD(bits=4), 2, cc.AllGather),
        (cc.QSGD(bits=4), 3, cc.TwoPhase),
        (cc.Cast(torch.bfloat16), 3, cc.TwoPhase),
    ):
        assert isinstance(cc.settle(example, world), route), example
