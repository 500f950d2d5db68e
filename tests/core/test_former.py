"""What was written for the last version's contracts works on, with a warning that says today's name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.core.former import OF_COMPRESSORS, OF_REDUCERS


def test_a_compressor_that_declares_former_names() -> None:
    with pytest.warns(FutureWarning) as said:

        @dataclass(frozen=True, repr=False)
        class _Old(cc.Compressor):
            ratio: float = 0.5

            small = 0
            grain = 8  # type: ignore[assignment]
            cure = "Use another."
            knob = "ratio"
            sparse = True

            def section(self, numel: int) -> int:
                return 4 * numel

            def delta(self, numel: int) -> float:
                return 1.0

            def encode_segment(self, y: Tensor, rng: cc.Rng, key: int, offset: int) -> Tensor:
                return y

            def decode_segment(self, code: Tensor, numel: int, rng: cc.Rng, key: int, offset: int) -> Tensor:
                return code.view(torch.float32)

    words = [str(w.message) for w in said]
    for old in ("grain", "cure", "knob", "small"):
        assert any(f"_Old.{old} is now {OF_COMPRESSORS[old]}" in w for w in words), words
    made: Any = _Old()
    assert (made.alignment, made.hint, made.tunable) == (8, "Use another.", "ratio")
    with pytest.warns(FutureWarning, match="is now"):
        found = cc.Simulator(cc.TwoPhase(made), 3).mean([{"w": torch.ones(40, 5)}] * 3)
    assert torch.equal(found[0]["w"], torch.ones(40, 5))


def test_what_compressors_and_reducers_were_asked() -> None:
    one: Any = cc.TopK(ratio=0.1)
    for old in ("grain", "knob", "tabled", "selective"):
        with pytest.warns(FutureWarning, match=f"TopK.{old} is now {OF_COMPRESSORS[old]}"):
            assert getattr(one, old) == getattr(one, OF_COMPRESSORS[old])
    reducer: Any = cc.settle(cc.ErrorFeedback(one), 2)
    for old, now in OF_REDUCERS.items():
        with pytest.warns(FutureWarning, match=rf"ErrorFeedback.{old} is now traits\.{now}"):
            assert getattr(reducer, old) == getattr(reducer.traits, now)
    segment = cc.Layout.of([("w", (40, 5))]).segments[0]
    for old, now in (("delta", reducer.promises(segment).delta), ("conserves", True)):
        with pytest.warns(FutureWarning, match=rf"ErrorFeedback.{old} is now promises\(segment\).{old}"):
            assert getattr(reducer, old)(segment) == now
    with pytest.warns(FutureWarning, match="Exact.native is now step < traits.in_dtype"):
        assert cc.Exact().native(10**9)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="'ErrorFeedback' object has no attribute 'nothing'"):
        reducer.nothing  # noqa: B018


def test_a_mistake_inside_a_property_is_named() -> None:
    """And not the property, which there is."""

    @dataclass(frozen=True, repr=False)
    class _Mine(cc.TopK):
        @property
        def alignment(self) -> int:
            return self.blocks  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="no attribute 'blocks'"):
        _ = _Mine(ratio=0.1).alignment


def test_a_reducer_of_nine_arguments_is_refused_where_it_is_defined() -> None:
    with pytest.raises(TypeError, match=r"_Old.reduce\(x, out, .*is now reduce\(source, target, state, ctx\)"):

        class _Old(cc.Reducer):
            def reduce(self, x: Any, out: Any, state: Any, ctx: Any, *, add: Any = None) -> Any:  # type: ignore[override]
                yield


@pytest.mark.parametrize(
    ("module", "name", "now"),
    [
        ("compcomm.adaptive.legacy", "Legacy", cc.SizeRule),
        ("compcomm.reducer", "settle", cc.settle),
        ("compcomm.reducer", "Store", None),
        ("compcomm.wire", "PeerError", cc.PeerError),
        ("compcomm.feedback.scheme", "Scheme", None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is now.*:FutureWarning")
def test_what_a_module_had_is_found_in_it(module: str, name: str, now: object) -> None:
    found = getattr(import_module(module), name)
    assert found is now if now is not None else isinstance(found, type)
