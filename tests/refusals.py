"""Tables of what is refused: a call on a line, and the words that its error has."""

from __future__ import annotations

import re
from math import inf, nan
from typing import Any

import pytest
import torch

import compcomm as cc

NAMES: dict[str, Any] = {**{name: getattr(cc, name) for name in cc.__all__}, "torch": torch, "inf": inf, "nan": nan}


def refusals(text: str, **names: Any) -> pytest.MarkDecorator:
    """For a test of ``call`` and ``words``: a case for every line ``call => words | more words``, or several where it
    ends in ``for $ in 1; 2; 3``; a line that is indented belongs to the one before. A call is Python, with our exports,
    torch and ``names`` in reach."""
    cases: list[Any] = []
    known = {**NAMES, **names}
    for line in re.sub(r"\n {4}(=>|for \$)", r" \1", text.strip()).splitlines():
        pattern, _, values = line.strip().partition(" for $ in ")
        for value in values.split("; "):
            call, words = pattern.replace("$", value).split(" => ")
            cases.append(pytest.param(lambda c=call: eval(c, known), words.split(" | "), id=call))
    return pytest.mark.parametrize(("call", "words"), cases)


def refused(call: Any, *words: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
