"""What a description means does not depend on how it was made, and does depend on the order of its patterns."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch

import compcomm as cc
from compcomm.core.reducer import flow
from compcomm.core.renamed import described
from compcomm.core.state import State
from compcomm.transports.simulator import perform


def test_the_order_of_patterns_counts() -> None:
    first, second = {"a*": cc.Exact(), "*": cc.SignScale()}, {"*": cc.SignScale(), "a*": cc.Exact()}
    assert cc.Partition(first) == cc.Partition(dict(first))
    assert cc.Partition(first) != cc.Partition(second)


def test_a_ratio_is_the_decimal_number_that_was_written() -> None:
    assert cc.TopK(ratio=0.07).kept(1100) == 77  # 0.07 * 1100 is 77.00000000000001 in binary


def test_dense_below_zero_codes_everything() -> None:
    layout = cc.Layout.of([("bias", (100_000,)), ("weight", (4, 4))])
    assert all(cc.SignScale(dense_below=1).exact(s) is (s.name == "bias") for s in layout.segments)
    assert not any(cc.SignScale(dense_below=0).exact(s) for s in layout.segments)
    out = cc.Simulator(cc.SignScale(dense_below=0), 2).mean([{"bias": torch.ones(33)}] * 2)
    assert torch.equal(out[0]["bias"], torch.ones(33))


def test_methods_that_have_become_functions_work_on_with_a_warning() -> None:
    layout = cc.Layout.of([("w", (64, 64))])
    for each in (cc.TopK(ratio=0.1), cc.ErrorFeedback(cc.SignScale()), cc.Exact()):
        with pytest.warns(FutureWarning, match=r"cost is now compcomm.cost"):
            assert each.cost(layout, 4) == cc.cost(each, layout, 4)  # type: ignore[union-attr]
    with pytest.warns(FutureWarning, match=r"settle is now compcomm.settle"):
        assert cc.Exact().settle(2) == cc.Exact()  # type: ignore[attr-defined]
    with pytest.warns(FutureWarning, match="contractive is now"):
        assert cc.QSGD(bits=4).contractive() == cc.Contractive(cc.QSGD(bits=4))  # type: ignore[attr-defined]


def test_a_sum_over_ranks_that_are_out_of_step_is_noticed() -> None:
    layout = cc.Layout.of([("w", (64, 64))])
    reducer = cc.settle(cc.RandK(ratio=0.1), 2)
    flows = []
    for rank in range(2):
        bucket = cc.Bucket(torch.ones(4096), layout)
        state = State(cc.Store(reducer, rank, 2), layout)
        flows.append(flow(reducer, bucket, state, cc.Context(rank, 2, step=3 + rank)))
    perform([next(f) for f in flows])
    with pytest.raises(cc.PeerError, match="step 3, bucket 0, a peer sent a payload of another step"):
        flows[0].send(False)


def test_descriptions_are_pickled_and_copied() -> None:
    partition = cc.Partition({"a*": cc.Exact(), "*": cc.ErrorFeedback(cc.TopK(ratio=0.1))})
    assert pickle.loads(pickle.dumps(partition)) == copy.deepcopy(partition) == partition


def test_a_pattern_that_takes_no_parameter_is_refused() -> None:
    layout = cc.Layout.of([("embed.weight", (64, 64)), ("head.weight", (64, 64))])
    cc.Warmup(3, cc.Partition({"embed*": cc.Exact(), "*": cc.SignScale()})).check(layout)
    for parts in ({"embd*": cc.Exact(), "*": cc.SignScale()}, {"*": cc.SignScale(), "embed*": cc.Exact()}):
        with pytest.raises(ValueError, match="no parameter is left for pattern 'emb"):
            cc.Warmup(3, cc.Partition(parts)).check(layout)


def test_a_renamed_class_is_found_by_its_former_name() -> None:
    with pytest.warns(FutureWarning, match="Legacy is now SizeRule"):
        assert cc.Legacy is cc.SizeRule
    with pytest.warns(FutureWarning, match="Legacy is now SizeRule"):
        assert cc.parse("ErrorFeedback(Legacy(TopK(ratio=0.1), large=0.02))").reducer == cc.SizeRule(cc.TopK(0.1), 0.02)
    assert described("EF21(Legacy(TopK(ratio=0.1), large=0.02))") == "EF21(SizeRule(TopK(ratio=0.1), large=0.02))"


def test_overrides_that_are_not_told_how_to_find_segments_work_with_a_warning() -> None:
    """As those were written that came before ``find``."""
    with pytest.warns(FutureWarning, match=r"Former.(en|de)code_rows has one more argument now, find") as said:

        class Former(cc.SignScale):
            def encode_rows(self, i, gain, rng, hints):  # pyright: ignore
                torch.ops.compcomm.sign_encode(*i, 0, self.block)

            def decode_rows(self, wires, table, skip, out, scale, accumulate, rng):  # pyright: ignore
                torch.ops.compcomm.sign_decode(wires, table, skip, out, scale, accumulate, self.block)

    assert len(said) == 2
    given = [{"w": torch.randn(64, 64)} for _ in range(3)]
    due = cc.Simulator(cc.SignScale(), world=3).mean(given)[0]["w"]
    found = cc.Simulator(Former(), world=3).mean(given)[0]["w"]
    assert torch.equal(found, due)
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Passing(cc.SignScale):
            def encode_rows(self, *args):
                super().encode_rows(*args)

    assert Passing().section(512) == cc.SignScale().section(512)
