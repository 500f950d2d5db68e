"""DDP with nodes of two ranks in every form that DDP takes: graphs that never change, parameters that are not used,
several passes to a step, views, two bytes, uneven inputs; and buckets whose parts take unlike numbers of rounds."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import compcomm as cc

from . import models
from .harness import Workers
from .on_hosts import nodes_of
from .test_nodes import Fails

pytestmark = pytest.mark.multi

EF = "ErrorFeedback(TopK(ratio=0.1))"
MATRICES = "Partition({'*weight': PowerSGD(2), '*': Exact()})"


class Parts(nn.Module):
    """Of its layers one is used by nobody, and one by ranks 0 and 1 in odd steps alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.never, self.sometimes = models.mlp(3), models.mlp(1, seed=1), models.mlp(1, seed=2)
        self.number = 0

    def forward(self, x: Tensor) -> Tensor:
        self.number += 1
        y = self.body(x)
        return y + self.sometimes(y) if self.number % 2 == 0 and dist.get_rank() < 2 else y


def wrapped(module: nn.Module, reducer: str | None, **options: Any) -> Any:
    """Plain DDP without a reducer."""
    if reducer is None:
        return models.wrap(module, **options)
    with nodes_of(2, 2):
        return models.wrap(module, cc.parse(reducer), between="nodes", **options)


def module_for(option: str) -> nn.Module:
    return Parts() if option == "find_unused_parameters" else models.mlp()


def passes(model: Any, inputs: list[Tensor], held: int, hook: Any = None) -> Tensor:
    """Plain SGD, each step of several passes, of which the last is averaged; the hook may be told how many."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if hook is not None:
        hook.passes = held
    for at in range(0, len(inputs), held):
        optimizer.zero_grad()
        for place, x in enumerate(inputs[at : at + held], 1):
            with ExitStack() as stack:
                if place < held and hook is None:
                    stack.enter_context(model.no_sync())
                (model(x).pow(2).mean() / held).backward()
        optimizer.step()
    return models.flat(model)


def trains(rank: int, world: int, option: str, held: int) -> Any:
    """Weights of plain DDP, of Exact() between nodes, and with memory, as DDP is by default and with an option."""
    inputs = models.batches(rank, 6)
    options = {option: True} if option else {}
    found: list[Any] = []
    for reducer, given in ((None, options), ("Exact()", options), (EF, options), (MATRICES, options)):
        model, hook = wrapped(module_for(option), reducer, **given)
        found.append((passes(model, inputs, held), 6 // held if hook is None else hook.step))
    needed = options if option == "find_unused_parameters" else {}
    model, hook = wrapped(module_for(option), EF, megabytes=25, **needed)
    return found, passes(model, inputs, held, hook)


@pytest.mark.parametrize(
    "option, held",
    [("static_graph", 1), ("find_unused_parameters", 1), ("gradient_as_bucket_view", 1), ("", 3)],
)
def test_exact_is_ddp_and_memory_knows_no_forms(four: Workers, option: str, held: int) -> None:
    results = four.run(trains, option=option, held=held)
    for found, one_bucket in results:
        (plain, _), (exact, _), (fed_back, _), _ = found
        torch.testing.assert_close(exact, plain, rtol=1e-5, atol=1e-6)
        assert torch.equal(fed_back, one_bucket)
        assert [steps for _, steps in found] == [6 // held] * 4
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found[1:], results[0][0][1:], strict=True))


def in_two_bytes(rank: int, world: int) -> Any:
    """The first gradient, what is due and how large the addends are; weights after some steps; bytes between nodes."""
    inputs = [x.bfloat16() for x in models.batches(rank, 4)]
    own = models.mlp().bfloat16()
    own(inputs[0]).float().pow(2).mean().backward()
    due, size = models.grads(own), models.grads(own).abs()
    for total in (due, size):
        dist.all_reduce(total)
        total /= world
    model, hook = wrapped(models.mlp().bfloat16(), "Exact()")
    model(inputs[0]).float().pow(2).mean().backward()
    first, sent = models.grads(model), hook.report().bytes_sent
    coded, _ = wrapped(models.mlp().bfloat16(), EF)
    return first, due, size, [models.train(model, inputs), models.train(coded, inputs)], sent


def test_gradients_of_two_bytes(four: Workers) -> None:
    """A node's mean, the sum of two, the half of it and what DDP takes are rounded to eight bits each."""
    results = four.run(in_two_bytes)
    for first, due, size, trained, _ in results:
        assert bool(((first - due).abs() <= 4 * 2.0**-9 * size).all())
        assert all(torch.equal(a, b) and bool(a.isfinite().all()) for a, b in zip(trained, results[0][3], strict=True))
    numel = models.flat(models.mlp()).numel()
    assert results[0][4] + results[1][4] == 2 * numel, "what a node sends is no wider than the gradient"


def uneven(rank: int, world: int, reducer: str) -> Any:
    inputs = models.batches(rank, 2 + (rank + 1) % 3)
    plain, _ = wrapped(models.mlp(), None)
    model, hook = wrapped(models.mlp(), reducer)
    with plain.join():
        models.train(plain, inputs)
    with model.join():
        models.train(model, inputs)
    return models.flat(plain), models.flat(model), hook.step


@pytest.mark.parametrize("reducer", ["Exact()", "TopK(ratio=1.0)"])
def test_uneven_inputs_under_join(four: Workers, reducer: str) -> None:
    results = four.run(uneven, reducer=reducer)
    for plain, found, steps in results:
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
        assert torch.equal(found, results[0][1]) and steps == 4


SMALL = {"megabytes": 0.001}
"""A bucket for each layer: of some a rank of the node owns the vector and another the matrix, of some one owns all."""


def rounds(rank: int, world: int, reducer: str) -> Any:
    """Weights with one bucket and with many, and the buckets."""
    found: list[Tensor] = []
    for options in ({"megabytes": 25}, SMALL):
        model, hook = wrapped(models.mlp(), reducer, **options)
        found.append(models.train(model, models.batches(rank, 4)))
    return found, len(hook.steps.scheduler.last)


@pytest.mark.parametrize("reducer", ["PowerSGD(2)", MATRICES, "AllReduce(Cast(bfloat16))"])
def test_ranks_of_a_node_may_have_unlike_numbers_of_rounds(four: Workers, reducer: str) -> None:
    results = four.run(rounds, reducer=reducer)
    for (one, many), buckets in results:
        assert torch.equal(one, many) and torch.equal(one, results[0][0][0]) and buckets == 4


def failing(rank: int, world: int) -> Any:
    with nodes_of(2, 2):
        reducer = cc.Partition({"0.*": cc.PowerSGD(2), "1.*": cc.ErrorFeedback(Fails(block=16)), "*": cc.Exact()})
        model, _ = models.wrap(models.mlp(), reducer, between="nodes", **SMALL)
    return models.caught(lambda: models.train(model, models.batches(rank, 3)))


def test_a_rank_that_fails_among_unlike_rounds_ends_the_step_on_all(four: Workers) -> None:
    for rank, told in enumerate(four.run(failing)):
        assert told[0] == ("ArithmeticError" if rank == 3 else "PeerError"), told
