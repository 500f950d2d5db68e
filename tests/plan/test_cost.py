"""The cost model against closed forms, and the bytes beyond a dry run's reach against dry runs."""

from __future__ import annotations

import pytest

import compcomm as cc
from compcomm.plan import cost, models
from compcomm.plan.link import Link, Speed
from compcomm.transports.dry_run import Planned, plan

RESNET = models.find("resnet50").shapes
WHOLE = (cc.Layout.of(RESNET),)
GBIT = Link.of("1gbit", "50us")

# Seconds of one exchange of 25.6 million parameters by alpha-beta formulas with idealised payloads: a ring in fp32, two
# phases at 4 and at 1 bit, an all-gather of 1 % in 32 + 32 bits, PowerSGD at a ratio of 60. Ours differ in what is
# really sent: scales, headers, exact small parameters, and indices of 16 bits (3/4 of the bytes of 32 + 32).
TABLE = [
    ("1gbit", "50us", 4, "Exact()", 1.229, 1.0),
    ("1gbit", "50us", 16, "Exact()", 1.538, 1.0),
    ("1gbit", "50us", 64, "Exact()", 1.619, 1.0),
    ("10gbit", "30us", 16, "Exact()", 0.1545, 1.0),
    ("100gbit", "5us", 64, "Exact()", 0.0168, 1.0),
    ("1gbit", "50us", 4, "TwoPhase(Cast(bfloat16))", 0.615, 1.0),
    ("1gbit", "50us", 64, "TwoPhase(Cast(bfloat16))", 0.813, 1.0),
    ("1gbit", "50us", 4, "TwoPhase(QSGD(bits=4))", 0.154, 1.025),
    ("1gbit", "50us", 16, "TwoPhase(QSGD(bits=4))", 0.194, 1.025),
    ("1gbit", "50us", 64, "TwoPhase(QSGD(bits=4))", 0.208, 1.025),
    ("1gbit", "50us", 4, "TwoPhase(SignScale())", 0.039, 1.12),
    ("1gbit", "50us", 4, "AllGather(TopK(ratio=0.01))", 0.049, 0.85),
    ("1gbit", "50us", 16, "AllGather(TopK(ratio=0.01))", 0.247, 0.85),
    ("1gbit", "50us", 64, "AllGather(TopK(ratio=0.01))", 1.035, 0.85),
    ("1gbit", "50us", 4, "PowerSGD(rank=4)", 0.021, 0.91),
]


@pytest.mark.parametrize(("rate", "latency", "world", "text", "expected", "payload"), TABLE)
def test_the_reference_table(rate: str, latency: str, world: int, text: str, expected: float, payload: float) -> None:
    reducer = cc.settle(cc.parse(text), world)
    found = cost.exchange(reducer, WHOLE, world, Link.of(rate, latency))
    assert found == pytest.approx(expected * payload, rel=0.03)


def test_rounds_and_bytes_of_every_kind() -> None:
    def at(kind: str, nbytes: int, sent: int) -> tuple[int, int]:
        return cost.steps(Planned(kind, "uint8", nbytes, sent), 8)

    assert at("AllReduce", 800, 1400) == (14, 1400)
    assert at("AllReduceMax", 800, 1400) == (14, 1400)
    assert at("ReduceScatter", 8_000_000, 7_000_000) == (7, 7_000_000)
    assert at("AllGather", 8_000_000, 7_000_000) == (7, 7_000_000)
    assert at("AllToAll", 8_000_000, 7_000_000) == (7, 7_000_000)
    assert at("Broadcast", 1000, 7000) == (3, 3000), "a tree: in each round whoever has it sends it"
    assert cost.steps(Planned("AllReduce", "uint8", 800, 0), 1) == (0, 0)


def test_a_measured_kind_goes_by_its_own_speed() -> None:
    link = Link(1e-3, 1e6, (Speed("AllReduce", 0.0, 8e6),), 2)
    planned = Planned("AllReduce", "float32", 1000, 1000)
    assert cost.seconds(planned, 2, link) == pytest.approx(1e-3)
    assert cost.seconds(planned._replace(kind="AllReduceMax"), 2, link) == pytest.approx(1e-3)
    assert cost.seconds(planned._replace(kind="AllToAll"), 2, link) == pytest.approx(1e-3 + 8e-3)
    assert cost.seconds(planned, 2, link.at(2e6)) == pytest.approx(5e-4), "measured kinds scale with the rate"


@pytest.mark.parametrize("text", ["Exact()", "TopK(0.01)", "QSGD(bits=4)", "PowerSGD(4)"])
def test_bytes_up_to_256_workers_are_the_dry_run_and_beyond_close_to_it(text: str) -> None:
    layout = cc.Layout.of(RESNET[-30:])
    for world, rel in ((2, 0.0), (4, 0.0), (64, 0.0), (512, 0.05)):
        reducer = cc.settle(cc.parse(text), world)
        exact = sum(p.sent for p in plan(reducer, layout, world))
        assert sum(p.sent for p in cost.collectives(reducer, layout, world)) == pytest.approx(exact, rel=rel, abs=2)


def test_what_sums_is_exact_for_any_number_of_workers() -> None:
    layout = cc.Layout.of(RESNET[-30:])
    for text in ("Exact()", "RandK(0.01)", "TopK(0.01)"):
        reducer = cc.settle(cc.parse(text), 4096)
        assert cost.collectives(reducer, layout, 4096) == plan(reducer, layout, 4096)
    (ddp,) = cost.collectives(None, layout, 4096)
    assert ddp.sent == 2 * (4 * layout.numel * 4095 // 4096)


def test_rows_beyond_256_workers_are_refused() -> None:
    """A whole bucket's bytes are no row's."""
    layout = cc.Layout.of([("w", (1024, 64))]).sharded(512)
    with pytest.raises(ValueError, match="up to 256 workers"):
        cost.collectives(cc.settle(cc.Exact(), 512, rows=True), layout, 512, rows=True)
    (host,) = cost.collectives(None, layout, 512, rows=True)
    assert host.sent == 4 * layout.numel * 511 // 512, "a reduce-scatter is counted for any number"
