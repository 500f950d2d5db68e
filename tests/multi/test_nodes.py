"""DDP with two nodes of two ranks: exact inside, a reducer between."""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import compcomm as cc
from tests.patience import patience

from . import models
from .harness import Workers
from .on_hosts import nodes_of

pytestmark = pytest.mark.multi

EF4 = "ErrorFeedback(QSGD(bits=4, rounding='nearest', block=64))"


def wrapped(reducer: Any, sizes: tuple[int, ...] = (2, 2), **options: Any) -> Any:
    made = cc.parse(reducer) if isinstance(reducer, str) else reducer
    with nodes_of(*sizes):
        return models.wrap(models.mlp(), made, between="nodes", timeout=patience(20), **options)


def exact(rank: int, world: int) -> Any:
    inputs, found = models.batches(rank, 5), dict[str, Any]()
    plain, _ = models.wrap(models.mlp())
    found["plain"] = models.train(plain, inputs)
    for text in ("Exact()", "Partition({'*.weight': ErrorFeedback(TopK(0.1)), '*': Exact()})", "PowerSGD(2)",
                 "LGreCo(ErrorFeedback(TopK(0.1)), every=2)", "EF21(QSGD(bits=4))"):  # fmt: skip
        model, hook = wrapped(text)
        found[text] = models.train(model, inputs)
        assert hook.step == 5 and hook.transport.world == 2
        report = hook.report()
        found[f"{text} bytes"] = report.bytes_sent, report.bytes_dense, report.state_bytes
    pair = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])][rank % 2]
    model, hook = models.wrap(models.mlp(), cc.Exact(), between=pair)
    found["given"] = models.train(model, inputs), hook.transport.rank
    return found


def test_nodes_average_what_all_ranks_do(four: Workers) -> None:
    results = four.run(exact)
    numel = models.flat(models.mlp()).numel()
    for rank, found in enumerate(results):
        torch.testing.assert_close(found["Exact()"], found["plain"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["given"][0], found["plain"], rtol=1e-5, atol=1e-6)
        assert found["given"][1] == rank // 2
        for text in (t for t in found if "(" in t and not t.endswith("bytes")):
            assert torch.equal(found[text], results[0][text]), f"{text}: ranks differ"
    between = [found["Exact() bytes"][0] for found in results]
    assert between[0] + between[1] == 4 * numel, "each parameter crosses once per node, the other way back too"
    states = [found["LGreCo(ErrorFeedback(TopK(0.1)), every=2) bytes"][2] for found in results]
    assert max(states) < 0.7 * sum(states[:2]), "memory is shared out inside a node"


def conserves(rank: int, world: int, infinite: int) -> Any:
    """Six steps, of which one may be bad on one rank; what was applied, what is remembered, what was due."""
    model, hook = wrapped(EF4, discardable=False)
    due, applied, bad = 0, 0, []
    for step in range(6):
        plain, x = models.mlp(), models.batches(rank, 1, start=step)[0]
        plain.load_state_dict(model.module.state_dict())
        for net in (plain, model):
            loss = net(x).square().mean()
            (loss * float("inf") if step == infinite and rank == 1 and net is model else loss).backward()
        gradient = models.grads(plain).double()
        dist.all_reduce(gradient)
        bad.append(hook.steps.current.bad)
        if step != infinite:
            applied = applied + models.grads(model).double()
            due = due + gradient / world
        model.zero_grad()
    held = hook.portable_state_dict()["slots"]["residual"]
    own = torch.cat(
        [held[n].flatten() if n in held else torch.zeros(p.numel()) for n, p in model.module.named_parameters()]
    )
    return float((due - applied - own).norm() / due.norm()), bad, bool(own.isfinite().all())  # type: ignore[union-attr]


def test_nothing_is_lost(four: Workers) -> None:
    for gap, bad, _ in four.run(conserves, infinite=-1):
        assert gap < 1e-6 and not any(bad)


def test_all_ranks_undo_a_bad_step(four: Workers) -> None:
    for gap, bad, finite in four.run(conserves, infinite=3):
        assert bad == [False, False, False, True, False, False] and finite
        assert gap < 0.2, "the finite part of the bad step alone is beside what was due"


def resumes(rank: int, world: int) -> Any:
    inputs = models.batches(rank, 6)
    model, hook = wrapped(EF4)
    models.train(model, inputs[:3])
    weights, exact_state, merged = model.module.state_dict(), hook.state_dict(), hook.portable_state_dict()
    weights = {n: t.clone() for n, t in weights.items()}
    due = models.train(model, inputs[3:])
    again, second = wrapped(EF4)
    again.module.load_state_dict(weights)
    second.load_state_dict(exact_state)
    same = torch.equal(models.train(again, inputs[3:]), due)
    _, third = models.wrap(models.mlp(), cc.parse(EF4))
    third.load_portable_state_dict(merged)
    back = third.portable_state_dict()["slots"]["residual"]
    held = merged["slots"]["residual"]
    return same, max(float((back[n] - held[n]).abs().max()) for n in held), list(exact_state)


def test_memory_resumes_and_moves_to_flat_ddp(four: Workers) -> None:
    for rank, (same, off, places) in enumerate(four.run(resumes)):
        assert same and off < 1e-6
        assert places == [f"rank {rank // 2} of 2, shard {rank % 2} of 2"]


class Fails(cc.SignScale):
    def encode_rows(self, i: Any, gain: Tensor, rng: Any, hints: Any, find: Any) -> None:
        if rng.step == 1 and dist.get_rank() == 3:
            raise ArithmeticError("made to fail")
        super().encode_rows(i, gain, rng, hints, find)


def failing(rank: int, world: int) -> Any:
    model, _ = wrapped(cc.ErrorFeedback(Fails(block=16)))
    return models.caught(lambda: models.train(model, models.batches(rank, 3)))


def test_a_rank_that_fails_ends_the_step_on_all(four: Workers) -> None:
    for rank, told in enumerate(four.run(failing)):
        assert told[0] == ("ArithmeticError" if rank == 3 else "PeerError"), told


def odd(rank: int, world: int) -> Any:
    x, found = models.batches(rank, 2), dict[str, Any]()
    for sizes in ((1, 3), (4,), (1, 1, 1, 1)):
        with redirect_stderr(StringIO()) as said:
            model, hook = wrapped(EF4, sizes)
        models.train(model, x)
        found[str(sizes)] = hook.transport.world, said.getvalue()
    groups = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3], [0, 2], [1, 3])]
    mixed = groups[0] if rank < 2 else groups[2 + rank % 2] if rank == 2 else groups[1]
    found["mixed"] = models.caught(lambda: models.wrap(models.mlp(), cc.Exact(), between=mixed))
    found["word"] = models.caught(lambda: models.wrap(models.mlp(), cc.Exact(), between="replicate"))
    state = cc.DDPState(cc.Exact(), between="nodes")
    found["unbound"] = models.caught(lambda: state.open(torch.device("cpu")))
    return found


def test_what_is_no_two_levels_averages_flat_or_says_why(four: Workers) -> None:
    why = {"(1, 3)": "nodes have 1, 3 ranks", "(4,)": "there is one node", "(1, 1, 1, 1)": "every node has one rank"}
    for rank, found in enumerate(four.run(odd)):
        for sizes, line in why.items():
            world, said = found[sizes]
            assert world == 4 and (f"{line}, so all ranks average as one" in said) is (rank == 0)
        models.said(found["mixed"], "one rank of each node")
        models.said(found["word"], "'nodes', or the process group")
        models.said(found["unbound"], "bind")
