"""One language for Python, the command line and YAML: read back to an equal object, and nothing is executed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import compcomm as cc

compressors = st.one_of(
    st.builds(cc.TopK, ratio=st.floats(1e-6, 1.0)),
    st.builds(cc.TopK, k=st.integers(1, 10**9), dense_below=st.integers(0, 10**6)),
    st.builds(cc.RandK, ratio=st.floats(1e-6, 1.0), unbiased=st.booleans()),
    st.builds(
        cc.QSGD,
        bits=st.integers(2, 8),
        norm=st.sampled_from([2, math.inf]),
        rounding=st.sampled_from(["stochastic", "nearest"]),
        block=st.integers(1, 64).map(lambda b: 16 * b),
    ),
    st.builds(cc.QSGD, levels=st.integers(1, 127)),
    st.builds(cc.SignScale, st.sampled_from(["l1", "l2"])),
    st.builds(cc.Cast, st.sampled_from([torch.bfloat16, torch.float16])),
    st.builds(cc.QSGD, bits=st.integers(2, 8)).map(cc.Contractive),
)
contractions = compressors.filter(lambda c: c.delta(1 << 20) is not None or c.unbiased)
leaves = st.one_of(
    st.just(cc.Exact()),
    compressors.map(cc.AllGather),
    contractions.map(cc.ErrorFeedback),
    st.builds(lambda c: cc.ErrorFeedback(cc.TwoPhase(c, server=False)), contractions),
)
reducers = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(cc.Warmup, st.integers(0, 1000), inner),
        st.dictionaries(st.text(max_size=8), inner, min_size=1, max_size=3).map(cc.Partition),
    ),
    max_leaves=4,
)


@given(st.one_of(compressors, reducers))
def test_repr_reads_back(described: cc.Compressor | cc.Reducer) -> None:
    text = repr(described)
    again = cc.parse(text)
    assert again == described and repr(again) == text and hash(again) == hash(described)


@pytest.mark.parametrize(
    ("described", "text"),
    [
        (cc.TopK(ratio=0.01), "TopK(ratio=0.01)"),
        (cc.TopK(None, 3), "TopK(k=3)"),
        (cc.TopK(ratio=1), "TopK(ratio=1)"),
        (cc.QSGD(bits=4, norm=math.inf), "QSGD(bits=4)"),
        (cc.QSGD(bits=4, norm=2, rounding="nearest"), "QSGD(bits=4, norm=2, rounding='nearest')"),
        (cc.Cast(torch.float16), "Cast(float16)"),
        (cc.ErrorFeedback(cc.QSGD(bits=4)), "ErrorFeedback(Contractive(QSGD(bits=4)))"),
        (cc.TwoPhase(cc.SignScale(), server=cc.ErrorFeedback), "TwoPhase(SignScale(), server=ErrorFeedback)"),
        (
            cc.Partition({"*.w": cc.TopK(ratio=0.5), "*": cc.Exact()}),
            "Partition({'*.w': TopK(ratio=0.5), '*': Exact()})",
        ),
    ],
)
def test_repr_is_the_shortest_call(described: object, text: str) -> None:
    assert repr(described) == text


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("cc.TopK(ratio=0.01)", cc.TopK(ratio=0.01)),
        ("  compcomm.ErrorFeedback( TopK(0.01) )\n", cc.ErrorFeedback(cc.TopK(0.01))),
        ("QSGD(bits=4, norm=inf)", cc.QSGD(bits=4)),
        ("Cast(torch.bfloat16)", cc.Cast(torch.bfloat16)),
        ("QSGD(levels=7, norm=math.inf, rounding='nearest')", cc.QSGD(levels=7, rounding="nearest")),
        ("1e-3", 1e-3),
        ("-3", -3),
        ("[1, (2, 'x'), True, None]", [1, (2, "x"), True, None]),
        ("{'a': 1}", {"a": 1}),
    ],
)
def test_parse(text: str, due: object) -> None:
    assert cc.parse(text) == due


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("TopKK(ratio=0.1)", "TopK"), ("topk(ratio=0.1)", "TopK"), ("ErrorFedback(TopK(ratio=0.1))", "ErrorFeedback"),
        ("Qsgd(bits=4)", "QSGD"), ("SignScal()", "SignScale"), ("allgather(TopK(ratio=0.1))", "AllGather"),
        ("Cast(bfloat)", "bfloat16"), ("Two_Phase(SignScale())", "TwoPhase"),
    ],
)  # fmt: skip
def test_an_unknown_name_gets_the_nearest(text: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown name .* Did you mean {near}\?"):
        cc.parse(text)


def test_a_hopeless_name_gets_the_list() -> None:
    with pytest.raises(ValueError, match=r"unknown name 'zzzzzzzz'. Known: .*TopK"):
        cc.parse("zzzzzzzz()")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "TopK.__init__(1)", "(lambda: 1)()", "[x for x in (1,)]", "TopK(ratio=1/2)",
        "open('x')", "TopK(**{'ratio': 0.1})", "TopK(*[0.1])", "f'{1}'", "a.b.c()", "1 if True else 2", "TopK[0]",
        "inf()", "", "TopK(", "TopK(ratio=0.1); 1", "{**{}}", "-TopK(ratio=0.1)", "not True", "x := 3",
        "TopK(ratio=0.1, ratio=0.2)", "{[]: 1}", "Partition({[]: Exact()})", "\0", "\ud800", "(" * 300 + ")" * 300,
        "-" * 100_000 + "1",
    ],
)  # fmt: skip
def test_nothing_else_is_a_description(text: str) -> None:
    with pytest.raises(ValueError, match=r"parse\("):
        cc.parse(text)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        cc.parse(text)
    except ValueError as error:
        assert "parse(" in str(error)


@pytest.mark.parametrize("text", ["TopK(ratio=0.1, colour='red')", "TopK(1, 2, 3, 4, 5)", "Exact(1)", "Warmup()"])
def test_wrong_arguments_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"parse\(.*argument"):
        cc.parse(text)


@pytest.mark.parametrize(
    "text", ["TopK(ratio='x')", "QSGD(bits='4')", "Warmup('a', Exact())", "Cast(3)", "Partition(3)"]
)
def test_values_of_the_wrong_kind_are_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        cc.parse(text)
