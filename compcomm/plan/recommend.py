"""Which method to use, in one line of Python, and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ..core.description import Described, is_ours
from .methods import HALF, POLICY, UNCOMPRESSED, Baselines
from .step import Prediction

CLOSE = 0.06
"""Of the shortest step's time: within it the method that loses less is preferred."""


class Recommendation(NamedTuple):
    """``method``: its text. ``line``: the line of Python; ``reason``: why, in one line."""

    method: str
    line: str
    reason: str


def choose(
    predictions: Sequence[Prediction],
    close: float = CLOSE,
    arguments: str = "",
    plain: str = "DDP",
    baselines: Baselines = UNCOMPRESSED,
    comment: str = "",
) -> Recommendation:
    """The shortest predicted step; of those within ``close`` of it the first in order, which goes from the least that a
    method loses to the most.

    ``arguments``: what else attaches a method; ``comment``: what that line ends with; ``plain``: what averages without
    a method.

    Only time is weighed: how many steps a run needs depends on the task, and no prediction here knows it.
    """
    best = min(predictions, key=lambda p: p.seconds)
    taken = next(p for p in predictions if p.seconds <= best.seconds * (1 + close))
    uncompressed = [p for p in predictions if p.method in (*baselines.fp32, *baselines.bf16) and p is not taken]
    best_plain = min(uncompressed, key=lambda p: p.seconds, default=taken)
    near = ""
    if taken is not best:
        near = f"; {best.method} would save {100 * (1 - best.seconds / taken.seconds):.1f} %, and loses more"
    known = {p.method for p in predictions}
    first = next((text for text in baselines.fp32 if text in known), None)  # two levels may pay where nothing is coded
    if taken.method in (first, HALF.text):
        why = (
            "communication hides behind the backward pass"
            if taken.exposed <= 0.02 * taken.seconds
            else ("no method is faster by more than it costs")
        )
        if taken.method == HALF.text:
            return Recommendation(HALF.text, f"{POLICY}, and no hook", f"{why}{near}")
        return Recommendation("DDP", f"compression does not pay here: use {plain} as it is", f"{why}{near}")
    gain = "" if best_plain is taken else f", {best_plain.seconds / taken.seconds:.2f}x as fast as {best_plain.method}"
    reason = f"a step of {1e3 * taken.seconds:.4g} ms{gain}{near}"
    return Recommendation(taken.method, f"hook = cc.attach(model, {python(taken.method)}{arguments}){comment}", reason)


def python(text: str) -> str:
    """A description as a script that says ``import compcomm as cc`` writes it.

    >>> python("ErrorFeedback(QSGD(bits=4, rounding='nearest'))"), python("Cast(bfloat16)")
    ("cc.ErrorFeedback(cc.QSGD(bits=4, rounding='nearest'))", 'cc.Cast(torch.bfloat16)')
    """

    foreign = False

    def full(found: re.Match[str]) -> str:
        nonlocal foreign
        name = found[0]
        if made := Described.registry.get(name):
            foreign |= not is_ours(made)
            return f"cc.{name}"
        return f"torch.{name}" if name in _DTYPES else name

    written = re.sub(r"'[^']*'|[A-Za-z_][A-Za-z_0-9]*", full, text)
    return f"cc.parse({text!r})" if foreign else written  # another package's, whose import only it knows


_DTYPES = ("float64", "float32", "bfloat16", "float16", "int8", "float8_e4m3fn", "float8_e5m2")
