"""What attach checks, on every rank, and what an attachment tells and keeps."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc
from compcomm.engine.options import Options
from compcomm.engine.session import Session
from compcomm.hosts.joining import connect

from . import models
from .harness import Workers

pytestmark = pytest.mark.multi

EF = "ErrorFeedback(TopK(ratio=0.05))"


def differ(rank: int, world: int, what: str) -> Any:
    odd = rank == world - 1
    module = models.mlp()
    reducer: Any = cc.Exact()
    options: dict[str, Any] = {}
    if what == "reducer":
        reducer = cc.Exact() if odd else cc.TopK(ratio=0.5)
    elif what == "seed":
        options["seed"] = 4 if odd else 3
    elif what == "names":
        module = nn.Sequential()
        module.add_module("other" if odd else "body", models.mlp())
    elif what == "pattern":
        reducer = cc.Partition({"nothing*" if odd else "*": cc.Exact()})
    elif what == "type":
        reducer = "TopK" if odd else cc.Exact()
    return models.caught(lambda: cc.attach(DDP(module), reducer, timeout=15, **options))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("reducer", "reducer: TopK(ratio=0.5) on ranks 0, 1, Exact() on rank 2."),
        ("seed", "seed: 3 on ranks 0, 1, 4 on rank 2."),
        ("names", "parameters: entry 0 is body.0.weight [64, 64] float32 on ranks 0, 1, other.0.weight [64, 64] "),
        ("pattern", "rank 2 could not attach: ValueError: Partition({'nothing*': Exact()}): no pattern matches"),
        ("type", "rank 2 could not attach: TypeError: attach: 'TopK' is no reducer."),
    ],
)
def test_a_difference_is_an_error_on_every_rank(three: Workers, what: str, said: str) -> None:
    own = {"pattern": ("ValueError", "no pattern matches '0.weight'"), "type": ("TypeError", "cc.parse")}
    for rank, (kind, message, _) in enumerate(three.run(differ, what=what, timeout=30)):
        if what in own and rank == 2:
            assert kind == own[what][0]
            assert own[what][1] in message
        else:
            assert kind == "AgreementError"
            assert said in message


def refusals(rank: int, world: int) -> Any:
    found: dict[str, Any] = {}
    model = DDP(models.mlp())
    found["plain module"] = models.caught(lambda: cc.attach(models.mlp(), cc.Exact()))
    found["no reducer"] = models.caught(lambda: cc.attach(model, "TopK"))  # type: ignore[arg-type]
    found["seed"] = models.caught(lambda: cc.attach(model, cc.Exact(), seed=1.5))  # type: ignore[arg-type]
    found["timeout"] = models.caught(lambda: cc.attach(model, cc.Exact(), timeout=-1))
    found["no time"] = models.caught(lambda: cc.attach(model, cc.Exact(), timeout="60"))  # type: ignore[arg-type]
    found["group"] = models.caught(lambda: cc.attach(model, cc.Exact(), group=0))  # type: ignore[arg-type]
    named = dict(model.module.named_parameters())
    made = partial(Session, connect(None, torch.device("cpu"), 20), Options(cc.Exact()))
    found["parameters"] = models.caught(lambda: made(named))
    found["scaler"] = models.caught(lambda: cc.attach(model, cc.Exact(), scaler=1024.0))
    found["check_every"] = models.caught(lambda: cc.attach(model, cc.Exact(), check_every=-1))
    cc.attach(model, cc.Exact(), timeout=20)
    found["twice"] = models.caught(lambda: cc.attach(model, cc.Exact(), timeout=20))
    other = DDP(models.mlp())
    other.register_comm_hook(None, _foreign)
    found["foreign hook"] = models.caught(lambda: cc.attach(other, cc.Exact(), timeout=20))
    sparse = nn.Sequential(nn.Embedding(10, 4, sparse=True))
    found["sparse"] = models.caught(lambda: cc.attach(DDP(sparse), cc.Exact(), timeout=20))
    odd = nn.Module()
    odd.weight = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    found["complex"] = models.caught(lambda: cc.attach(DDP(odd), cc.Exact(), timeout=20))
    odd.forward = lambda: torch.view_as_real(odd.weight).square().sum()
    late = DDP(odd)
    late.register_comm_hook(cc.DDPState(cc.Exact(), timeout=20), cc.ddp_hook)
    found["complex bucket"] = models.caught(lambda: late().backward())
    bare = DDP(models.mlp())
    bare.register_comm_hook(cc.TopK(ratio=0.1), cc.ddp_hook)
    found["no state"] = models.caught(lambda: bare(models.batches(rank, 1)[0]).sum().backward())
    return found


def _foreign(state, bucket):  # type: ignore[no-untyped-def]  # DDP checks annotations
    raise NotImplementedError


def test_what_attach_refuses(two: Workers) -> None:
    said = {
        "plain module": ("TypeError", "DistributedDataParallel"),
        "no reducer": ("TypeError", "cc.parse"),
        "seed": ("ValueError", "seed=1.5"),
        "timeout": ("ValueError", "timeout=-1"),
        "no time": ("TypeError", "attach: timeout='60': give a number of seconds"),
        "group": ("TypeError", "attach(group=0): this is no process group"),
        "parameters": ("TypeError", "Session(parameters=dict): give a list of names and parameters"),
        "no state": ("TypeError", "ddp_hook: its state is TopK(ratio=0.1). Wrap the reducer"),
        "scaler": ("TypeError", "get_scale"),
        "check_every": ("ValueError", "check_every=-1"),
        "twice": ("ValueError", "has a compcomm reducer already"),
        "foreign hook": ("ValueError", "has the hook '_foreign' already"),
        "sparse": ("TypeError", "sparse=False"),
        "complex": ("TypeError", "torch.complex64"),
        "complex bucket": ("TypeError", "ddp_hook: the gradient of '0' is torch.complex64"),
    }
    for found in two.run(refusals):
        for case, (kind, text) in said.items():
            assert found[case][0] == kind, (case, found[case])
            assert text in found[case][1], (case, found[case])


def resumes(rank: int, world: int, reducer: str) -> Any:
    xs = models.batches(rank, 8)
    through, attached = models.wrap(models.mlp(), cc.parse(reducer), seed=5)
    models.train(through, xs[:4])
    buffer = io.BytesIO()
    torch.save({"model": through.module.state_dict(), "hook": attached.state_dict()}, buffer)
    expected = models.train(through, xs[4:])
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    again, second = models.wrap(models.mlp(seed=9), cc.parse(reducer), seed=5)
    again.module.load_state_dict(saved["model"])
    second.load_state_dict(saved["hook"])
    found = models.train(again, xs[4:])
    final = models.own(second.state_dict())
    second.load_state_dict({**second.state_dict(), "rank 17 of 18": None})  # others' may lie beside it
    ((place, kept),) = saved["hook"].items()
    wrong: dict[str, Any] = {}
    for name, value in {"reducer": "Exact()", "world": 9, "rank": 7, "seed": 6, "version": 1, "step": -1}.items():
        wrong[name] = models.caught(lambda n=name, v=value: second.load_state_dict({place: {**kept, n: v}}))
    slots = dict(kept["slots"])
    slots["residual"] = {**slots["residual"], "0.weight": torch.zeros(7)}
    wrong["model"] = models.caught(lambda: second.load_state_dict({place: {**kept, "slots": slots}}))
    other = f"rank {(rank + 1) % world} of {world}"
    wrong["another's"] = models.caught(lambda: second.load_state_dict({other: kept}))
    wrong["not ours"] = models.caught(lambda: second.load_state_dict(again.state_dict()))
    wrong["merged"] = models.caught(lambda: second.load_state_dict(kept))
    after = models.own(second.state_dict())
    same = all(torch.equal(final["slots"][s][n], t) for s, e in after["slots"].items() for n, t in e.items())
    return expected, found, wrong, same and final["step"] == after["step"], attached.step, second.step


@pytest.mark.parametrize("reducer", [EF, "ErrorFeedback(TwoPhase(Contractive(QSGD(bits=4))))"])
def test_a_checkpoint_resumes_bit_for_bit(three: Workers, reducer: str) -> None:
    for expected, found, wrong, same, steps, resumed in three.run(resumes, reducer=reducer):
        assert torch.equal(expected, found)
        assert steps == resumed == 8
        assert same
        for name, (kind, message, _) in wrong.items():
            assert kind == "StateError", (name, kind, message)
        assert "of 3, and this is rank" in wrong["another's"][1]
        assert "Is it the model's?" in wrong["not ours"][1]
        assert "load_portable_state_dict()" in wrong["merged"][1]


def checks(rank: int, world: int) -> Any:
    model, _ = models.wrap(models.mlp(), cc.parse(EF), check_every=2)
    xs = models.batches(rank, 6)
    models.train(model, xs[:3])
    if rank == 1:
        with torch.no_grad():
            list(model.parameters())[2][5, 5] += 1e-6
    return models.caught(lambda: models.train(model, xs[3:]))


def test_check_every_names_the_first_parameter_that_diverges(three: Workers) -> None:
    for kind, message, _ in three.run(checks):
        assert kind == "DivergenceError"
        assert "step 4: parameter '1.weight' differs between the ranks (rank 1 from the others)" in message


def toggles(rank: int, world: int) -> Any:
    model, attachment = models.wrap(models.mlp(), cc.parse(EF))
    xs = models.batches(rank, 6)
    models.train(model, xs[:2])
    before = models.slots(attachment)["residual"]
    attachment.enabled = False
    start = models.flat(model)
    exact = models.train(model, xs[2:4])
    plain, _ = models.wrap(models.mlp())
    with torch.no_grad():
        nn.utils.vector_to_parameters(start, plain.parameters())
    expected = models.train(plain, xs[2:4])
    after = models.slots(attachment)["residual"]
    attachment.enabled = True
    models.train(model, xs[4:])
    moved = models.slots(attachment)["residual"]
    return exact, expected, _same(before, after), _same(after, moved), attachment.step


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


def test_disabled_is_exact_and_keeps_the_residuals(two: Workers) -> None:
    for exact, expected, kept, unmoved, steps in two.run(toggles):
        torch.testing.assert_close(exact, expected, rtol=1e-5, atol=1e-7)
        assert kept
        assert not unmoved
        assert steps == 6


def reports(rank: int, world: int) -> Any:
    model, attachment = models.wrap(models.mlp(), cc.parse(EF))
    models.train(model, models.batches(rank, 4))
    report = attachment.report()
    attachment.detach()
    return report.as_dict(), str(report), models.caught(lambda: models.train(model, models.batches(rank, 1)))


def test_report(two: Workers) -> None:
    settled = cc.settle(cc.parse(EF), 2)
    layout = cc.Layout.of([(f"{i}.{n}", (64, 64)[: 2 - (n == "bias")]) for i in range(4) for n in ("weight", "bias")])
    cost = cc.cost(settled, layout, 2)
    for fields, text, detached in two.run(reports):
        # One header per bucket where the prediction has one in all.
        assert cost.sent <= fields["bytes_sent"] < cost.sent + 4 * 40
        assert fields["bytes_dense"] == cost.dense
        assert fields["ratio"] == pytest.approx(cost.ratio, rel=0.1)
        assert fields["steps"] == 4
        assert 0 < fields["kernel_seconds"] < 1
        assert 0 < fields["wire_seconds"] < 5
        assert 0 < fields["relative_error"]["0.weight"] < 1
        assert fields["relative_error"]["0.bias"] is None
        assert "0.weight" in text
        assert "bytes sent per step" in text
        assert detached[0] == "RuntimeError"
        assert "detached" in detached[1]


def prints(rank: int, world: int) -> str:
    import contextlib

    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        models.wrap(models.mlp(), cc.parse("TwoPhase(SignScale())"))
    return text.getvalue()


def test_one_line_at_attach(two: Workers) -> None:
    first, second = two.run(prints)
    assert second == ""
    assert first.count("\n") == 1
    assert first.startswith("compcomm: TwoPhase(SignScale()) on 2 ranks: ")
    assert "should pay below" in first
