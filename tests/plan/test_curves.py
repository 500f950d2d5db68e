"""The picture of a plan: a colour for each method, what is recommended, and axes in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compcomm.plan.curves import draw, small_print, styles, title
from compcomm.plan.link import Link
from compcomm.plan.methods import PLAIN, Method, method
from compcomm.plan.models import find
from compcomm.plan.planner import Plan, plan

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
LAYERS = [("a", (64, 64)), ("b", (64,))]


def made(*more: str, bandwidth: str = "1gbit") -> tuple[Plan, tuple[Method, ...]]:
    methods = (PLAIN, *map(method, ("Exact()", *more)))
    return plan(LAYERS, 8, bandwidth=bandwidth, latency="50us", compute=1e-4, methods=methods), methods


def test_ten_methods_have_ten_colours_and_ddp_lies_on_top() -> None:
    texts = ["DDP", *(f"m{i}" for i in range(10))]
    looks = styles(texts, "m7")
    assert list(looks) == texts and len({look["color"] for look in looks.values()}) == 11
    assert {looks[t]["linestyle"] for t in texts[1:]} == {"-"} and looks["DDP"]["linestyle"] == ":"
    assert looks["DDP"]["zorder"] > max(looks[t]["zorder"] for t in texts[1:])
    assert max(looks, key=lambda t: looks[t]["linewidth"]) == "m7"
    assert styles([*texts, "m10"], "DDP")["m10"]["linestyle"] == "--"
    assert "DDP" not in styles(["m0"], "DDP")
    thick = styles(["DDP", "m0"], "DDP")
    assert thick["DDP"]["linewidth"] > thick["m0"]["linewidth"]


def test_the_title_says_what_is_recommended_where() -> None:
    planned, methods = made("PowerSGD(2)", bandwidth="10mbit")
    name = next(m.short for m in methods if m.text == planned.recommendation.method)
    assert f"recommended: {name} at 8 workers and 10 Mbit/s (thick)" in title(planned, methods)
    assert "predicted" in small_print(planned) and "timed on this machine" in small_print(planned)
    assert "as given" in small_print(planned)
    link = Link(1e-5, 1e9, world=8)
    assert "measured between 8 ranks" in small_print(plan(LAYERS, 8, link, compute=1e-4, methods=methods))


def test_axes_are_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn: list[Any] = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: (self.canvas.draw(), drawn.append(self)))
    planned, methods = made("TopK(ratio=0.01)")
    draw(planned, find(LAYERS), methods, tmp_path / "p.png")
    workers, rates = drawn[0].axes
    words = {label.get_text() for label in rates.get_xticklabels()}
    assert {"10 Mbit/s", "100 Mbit/s", "1 Gbit/s", "10 Gbit/s", "100 Gbit/s"} <= words
    assert {"2", "4096"} <= {label.get_text() for label in workers.get_xticklabels()}
    named = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert named == [*(m.short for m in methods), "this plan"]
