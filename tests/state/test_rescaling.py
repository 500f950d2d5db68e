"""What waits to be sent is rescaled with the learning rate, on workers and owners; estimates and momentum stay."""

from __future__ import annotations

import pytest

import compcomm as cc
from compcomm.core.state import Store
from compcomm.state import merging

LAYOUT = cc.Layout.of([("w", (64, 48))])


@pytest.mark.parametrize(
    ("reducer", "waiting", "kept"),
    [
        ("ErrorFeedback(TwoPhase(SignScale()))", {"residual", "server"}, set[str]()),
        ("EF21(TwoPhase(SignScale()))", set[str](), {"estimate", "server"}),
        ("PowerSGD(2)", {"residual"}, {"q"}),
        ("DGC(TopK(0.1))", {"velocity"}, {"momentum"}),
    ],
)
def test_a_change_of_scale(reducer: str, waiting: set[str], kept: set[str]) -> None:
    store = Store(cc.settle(cc.parse(reducer), 3), 0, 3)
    store.declare(LAYOUT)
    entries = list(store.entries())
    for e in entries:
        e.tensor.fill_(2)
    merging.rescale(store, 0.25)
    found = {e.name: float(e.tensor.mean()) for e in entries}
    assert {n for n, v in found.items() if v == 0.5} == waiting
    assert kept <= {n for n, v in found.items() if v == 2.0}
