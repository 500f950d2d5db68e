"""1-bit Adam between processes where something goes wrong: interrupts, mistakes, ranks that differ, what is held."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from compcomm.optim import OneBitAdam, flat

from . import models
from .compressed import KINDS, LR, advance, make
from .given import SHAPES, Given, gradients
from .harness import Workers

pytestmark = pytest.mark.multi
KIND = "OneBitAdam"
FREEZE = KINDS[KIND].freeze


class Interrupted:
    """Raises in place of the second bucket's future."""

    def __init__(self, attachment: Any) -> None:
        self.submit, self.count = attachment.submit, 0

    def __call__(self, *given: Any, **options: Any) -> Any:
        self.count += 1
        if self.count == 2:
            raise KeyboardInterrupt
        return self.submit(*given, **options)


def interrupts(rank: int, world: int) -> Any:
    kept, flat.MESSAGE = flat.MESSAGE, 1024
    try:
        model, own = make(KIND, Given())
        advance(KIND, model, own, rank, range(FREEZE + 1))
        a = own.exchange.attachment  # type: ignore[union-attr]
        a.submit = Interrupted(a)
        own.zero_grad()
        model(gradients(rank, 50)).backward()
        try:
            own.step()
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
        return models.caught(own.step)
    finally:
        flat.MESSAGE = kept


def test_an_interrupt_does_not_hang_the_next_step(two: Workers) -> None:
    for kind, message, _ in two.run(interrupts, timeout=30):
        assert kind == "RuntimeError" and "left in the middle (KeyboardInterrupt)" in message


def mistakes(rank: int, world: int, what: str) -> Any:
    module = models.mlp(seed=rank if what == "unlike" else 0)
    ddp = DDP(module)
    if what == "averaged":
        own = OneBitAdam(ddp.parameters(), timeout=20)
        ddp(models.batches(rank, 1)[0]).square().mean().backward()
    elif what == "unlike":
        module = models.mlp(seed=rank)
        own = OneBitAdam(module, timeout=20)
        module(models.batches(rank, 1)[0]).square().mean().backward()
    else:
        own = OneBitAdam(ddp, timeout=20)
        with ddp.join():
            ddp(models.batches(rank, 1)[0]).square().mean().backward()
            return models.caught(own.step)
    told = models.caught(own.step)
    own.detach()
    return told


@pytest.mark.parametrize(
    ("what", "kind", "says"),
    [
        ("averaged", "RuntimeError", "give the optimizer the DDP model itself, OneBitAdam(ddp_model, ...)"),
        ("unlike", "DivergenceError", "OneBitAdam, without DDP, step 0: parameter '0.weight' differs"),
        ("join", "RuntimeError", "uneven inputs (model.join())"),
    ],
)
def test_mistakes_are_told(two: Workers, what: str, kind: str, says: str) -> None:
    for found, message, _ in two.run(mistakes, what=what):
        assert found == kind and says in message, message
    if what == "join":
        two.stop()  # it leaves its own group in the middle


def unlike_rates(rank: int, world: int, freeze: Any) -> Any:
    model, own = make(KIND, Given(), freeze=freeze, betas=(0.9, 0.8))
    for step in range(12):
        own.param_groups[0]["lr"] = LR * (1.01**step if rank == 1 and step < 6 else 1.0)
        advance(KIND, model, own, rank, range(step, step + 1))
    own.detach()
    return own.frozen_at


@pytest.mark.parametrize("freeze", [4, "auto"])
def test_rates_that_differ_do_not_part_the_ranks(two: Workers, freeze: Any) -> None:
    ends = two.run(unlike_rates, freeze=freeze)
    assert ends[0] == ends[1] and (freeze == "auto" or ends[0] == 7)


def forgets(rank: int, world: int, late: bool) -> Any:
    """What is left of a model and its optimizer when nobody holds them."""
    import gc
    import weakref

    model, own = make(KIND, models.mlp())
    for x in models.batches(rank, FREEZE + 2 if late else 1):
        own.zero_grad()
        model(x).square().mean().backward()
        own.step()
    held = [weakref.ref(o) for o in (model, next(model.parameters()), own)]
    own.detach()
    del model, own, x
    gc.collect()
    return [r() is None for r in held]


@pytest.mark.parametrize("late", [False, True])
def test_nothing_is_held_for_ever(two: Workers, late: bool) -> None:
    assert two.run(forgets, late=late) == [[True] * 3] * 2


def after_detach(rank: int, world: int) -> Any:
    model, own = make(KIND, Given())
    advance(KIND, model, own, rank, range(FREEZE + 1))
    own.detach()
    told = models.caught(own.step)
    return told, models.caught(lambda: model(gradients(rank, 9)).backward())


def test_a_detached_optimizers_model_does_not_train_on(two: Workers) -> None:
    for told, after in two.run(after_detach):
        assert told[0] == "RuntimeError" and "is detached" in told[1]
        assert "the optimizer of this DDP model is detached" in after[1]
    two.stop()


def rounds(rank: int, world: int, at: int, path: str) -> Any:
    """A random warm-up with a bad step in it, saved and resumed."""
    options = {"warmup": "QSGD(bits=4)", "freeze": 6, "ddp": False}
    if at:
        read = cc.checkpoint.load(f"{path}/{rank}.pt")
        module = Given()
        nn.utils.vector_to_parameters(read["x"], module.parameters())
        model, own = make(KIND, module, **options)  # type: ignore[arg-type]
        own.load_state_dict(read["o"])
    else:
        model, own = make(KIND, Given(), **options)  # type: ignore[arg-type]
    for step in range(at, 9):
        if step == 4 and not at:
            cc.checkpoint.save(f"{path}/{rank}.pt", {"x": models.flat(model), "o": own.state_dict()})
        own.zero_grad()
        model(gradients(rank, step)).backward()
        if step == 2:
            next(p for p in model.parameters()).grad[0, 0] = float("nan")  # type: ignore[index]
        own.step()
    own.detach()
    return models.flat(model)


def test_a_random_warm_up_resumes_to_the_bit(two: Workers, tmp_path: Any) -> None:
    whole = two.run(rounds, at=0, path=str(tmp_path))
    again = two.run(rounds, at=4, path=str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def coded_residual(rank: int, world: int) -> Any:
    model, own = make(KIND, Given(), compressor="ErrorFeedback(SignScale(), dtype=bfloat16)")
    advance(KIND, model, own, rank, range(8))
    merged = own.portable_state_dict()
    own.detach()
    return merged


def test_one_rank_takes_up_a_coded_residual(two: Workers) -> None:
    merged = two.run(coded_residual)[0]
    names = list(SHAPES)
    saved = merged["state"][0]["exp_avg"]
    own = OneBitAdam(
        list(Given().named_parameters()), lr=LR, freeze=FREEZE,
        compressor=cc.ErrorFeedback(cc.SignScale(), dtype=torch.bfloat16),
    )  # fmt: skip
    own.load_state_dict(merged)
    assert names[0] == "a" and not torch.equal(own.state_dict()["state"][0]["exp_avg"], saved)
    flatly = OneBitAdam(
        list(Given().named_parameters()), lr=LR, freeze=FREEZE, betas=(0.0, 0.999),
        compressor=cc.ErrorFeedback(cc.SignScale(), dtype=torch.bfloat16),
    )  # fmt: skip
    with pytest.raises(cc.StateError, match=r"betas\[0\] is 0, so there is no momentum"):
        flatly.load_state_dict(merged)
