"""The DDP hook against DDP itself, in every shape that DDP takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import compcomm as cc

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi


def equals_ddp(rank: int, world: int, **options: Any) -> Any:
    inputs = models.batches(rank, 6)
    plain, _ = models.wrap(models.mlp(), **options)
    hooked, attachment = models.wrap(models.mlp(), cc.Exact(), **options)
    expected, found = models.train(plain, inputs), models.train(hooked, inputs)
    return expected, found, attachment.step


@pytest.mark.parametrize("option", ["", "gradient_as_bucket_view", "static_graph", "find_unused_parameters"])
def test_exact_equals_ddp_without_a_hook(two: Workers, three: Workers, option: str) -> None:
    results = (two if option else three).run(equals_ddp, **({option: True} if option else {}))
    for expected, found, steps in results:
        assert steps == 6
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(found, results[0][1])


def feeds_back(rank: int, world: int, **options: Any) -> Any:
    inputs = models.batches(rank, 6)
    reducer = cc.ErrorFeedback(cc.TopK(ratio=0.05))
    plain, _ = models.wrap(models.mlp(), reducer, megabytes=25)
    other, _ = models.wrap(models.mlp(), reducer, **options)
    return models.train(plain, inputs), models.train(other, inputs)


@pytest.mark.parametrize("option", ["", "gradient_as_bucket_view", "static_graph", "find_unused_parameters"])
def test_feedback_does_not_depend_on_how_ddp_cuts_and_keeps_its_buckets(two: Workers, option: str) -> None:
    results = two.run(feeds_back, **({option: True} if option else {}))
    for one_bucket, several in results:
        assert torch.equal(one_bucket, several)
        assert torch.equal(several, results[0][1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(50, 64)
        self.body = nn.Linear(64, 64)
        self.head = nn.Linear(64, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed((x.abs() * 20).long().clamp(max=49))))


def ties(rank: int, world: int) -> Any:
    inputs = models.batches(rank, 4)
    plain, _ = models.wrap(Tied())
    hooked, _ = models.wrap(Tied(), cc.Exact())
    packed, attachment = models.wrap(Tied(), cc.ErrorFeedback(cc.TopK(ratio=0.1)))
    found = models.train(packed, inputs)
    names = sorted(models.slots(attachment)["residual"])
    return models.train(plain, inputs), models.train(hooked, inputs), found, names


def test_tied_weights_count_once(two: Workers) -> None:
    results = two.run(ties)
    for plain, hooked, packed, names in results:
        torch.testing.assert_close(hooked, plain, rtol=1e-5, atol=1e-7)
        assert torch.equal(packed, results[0][2])
        assert names == ["body.weight", "embed.weight"]


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.one = nn.Linear(64, 64)
        self.two = nn.Linear(64, 64).double()
        self.three = nn.Linear(64, 64).bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(self.two(self.one(x).double()).bfloat16()).float()


def mixes(rank: int, world: int) -> Any:
    inputs = models.batches(rank, 4)
    plain, _ = models.wrap(Mixed())
    hooked, _ = models.wrap(Mixed(), cc.Exact())
    return models.train(plain, inputs), models.train(hooked, inputs), {str(p.grad.dtype) for p in hooked.parameters()}


def test_mixed_dtypes(two: Workers) -> None:
    results = two.run(mixes)
    for plain, hooked, dtypes in results:
        torch.testing.assert_close(hooked, plain, rtol=2e-2, atol=2e-3)
        assert torch.equal(hooked, results[0][1])
        assert dtypes == {"torch.float32", "torch.float64", "torch.bfloat16"}


def unbound(rank: int, world: int) -> Any:
    inputs = models.batches(rank, 6)
    reducer = cc.ErrorFeedback(cc.TopK(ratio=0.05))
    model, state = models.unbound(models.mlp(), reducer)
    models.train(model, inputs[:3])
    refused = models.caught(state.state_dict)
    before = _sums(state.attachment.setup.store.state_dict())
    dense, ratio = state.report().bytes_dense, state.report().ratio
    state.bind(model)
    assert dense == state.report().bytes_dense == 4 * 4 * (64 * 64 + 64) and 5 < ratio < 20  # known without names
    saved = models.own(state.state_dict())
    after, names = _sums(saved["slots"]), sorted(saved["slots"]["residual"])
    named, _ = models.wrap(models.mlp(), reducer)
    return refused, before, after, names, models.train(model, inputs[3:]), models.train(named, inputs)


def _sums(slots: dict[str, dict[str, torch.Tensor]]) -> dict[str, list[float]]:
    return {slot: sorted(float(t.double().sum()) for t in e.values()) for slot, e in slots.items()}


def test_the_form_of_pytorch_and_names_that_come_later(two: Workers) -> None:
    for refused, before, after, names, late, early in two.run(unbound):
        assert refused[0] == "StateError"
        assert "bind(model)" in refused[1]
        assert before == after
        assert names == [f"{i}.weight" for i in range(4)]
        assert torch.equal(late, early)  # top-k draws no random numbers, so names do not matter to it


def alone(rank: int, world: int) -> Any:
    import torch.distributed as dist

    groups = [dist.new_group([r]) for r in range(world)]
    from torch.nn.parallel import DistributedDataParallel as DDP

    model = DDP(models.mlp(), process_group=groups[rank])
    attachment = cc.attach(model, cc.Exact(), timeout=20)
    own = models.mlp()
    inputs = models.batches(rank, 3)
    return models.train(model, inputs), models.train(own, inputs), attachment.report().bytes_sent


def test_world_of_one_sends_nothing(two: Workers) -> None:
    for found, expected, sent in two.run(alone):
        assert torch.equal(found, expected)
        assert sent == 0


def uneven(rank: int, world: int, reducer: str) -> Any:
    inputs = models.batches(rank, 3 + 2 * rank)
    plain, _ = models.wrap(models.mlp())
    hooked, attachment = models.wrap(models.mlp(), cc.parse(reducer))
    with plain.join():
        expected = models.train(plain, inputs)
    with hooked.join():
        found = models.train(hooked, inputs)
    return expected, found, attachment.step, models.flat(hooked)


@pytest.mark.parametrize("reducer", ["Exact()", "TopK(ratio=1.0)"])
def test_uneven_inputs_under_join(two: Workers, reducer: str) -> None:
    results = two.run(uneven, reducer=reducer)
    torch.testing.assert_close(results[1][1], results[1][0], rtol=1e-5, atol=1e-7)
    assert [r[2] for r in results] == [5, 5]
    assert torch.equal(results[0][3], results[1][3])


def sends(rank: int, world: int) -> Any:
    """Bytes per step, and gradients, of a bf16 model whose first layer travels exact."""
    found: list[Any] = []
    for text in ("Exact()", "Partition({'0*': Exact(), '*': ErrorFeedback(TopK(ratio=0.01))})", "TopK(ratio=0.01)"):
        torch.manual_seed(0)
        model, hook = models.wrap(models.mlp(2, 128).bfloat16(), cc.parse(text), megabytes=1)
        model(torch.randn(4, 128, generator=torch.Generator().manual_seed(rank)).bfloat16()).float().sum().backward()
        first = next(model.parameters()).grad
        found.append((hook.report().bytes_sent, None if first is None else first.float().clone()))
        hook.detach()
    return found


def test_what_travels_exact_does_so_in_the_gradients_own_precision(two: Workers) -> None:
    for (exact, due), (mixed, first), (sparse, _) in two.run(sends):
        assert mixed < exact / 2 + sparse, "half of the layers in bf16, the other half sparse"
        assert torch.equal(first, due)
