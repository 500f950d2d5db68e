"""Backward passes that the script throws away, ignores, or adds up: memory is as if they had not been, or as if they
had been one."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import compcomm as cc

from .. import schemes
from . import models
from .given import SHAPES, Given, gradients, hooked
from .harness import Workers

pytestmark = pytest.mark.multi

EF = schemes.SCHEMES["EF"]
MORE = (
    "Exact()",
    "QSGD(bits=4, coding='elias')",
    "AllGather(Threshold(ratio=0.05))",
    "ErrorFeedback(TopK(ratio=0.05), dtype=bfloat16)",
    "ErrorFeedback(QSGD(bits=4, rounding='nearest'), dtype=int8, average=0.3, reset=2)",
    "Warmup(2, EF21(TopK(ratio=0.05)))",
    "ErrorFeedback(LGreCo(TopK(ratio=0.05), every=4, window=2))",
    "Accordion(ErrorFeedback(TopK(ratio=0.1)), high=0.01, every=2)",
    "GlobalTopK(ErrorFeedback(TopK(ratio=0.05)), every=2)",
    "Partition({'a': PowerSGD(rank=2), 'b': EF21(TopK(ratio=0.1)), '*': Exact()})",
)
THROWN: dict[int, tuple[str, ...]] = {0: ("discard", "discard", "exact"), 1: ("local", "discard"), 4: ("discard",)}
"""Before which steps passes are thrown away, and how."""


def one(model: Any, given: dict[str, Tensor]) -> list[Tensor]:
    """A pass; what it delivers."""
    model.zero_grad()
    model(given).backward()
    return [p.grad.clone() for p in model.parameters()]


def unnamed(text: str, world: int, **options: Any) -> tuple[Any, Any]:
    """A DDP model in four buckets and its state, which has no names unless it needs them."""
    module = Given()
    reducer, plain = cc.parse(text), torch.optim.SGD(module.parameters(), lr=0.1)
    model, state = DDP(module, bucket_cap_mb=0.004), cc.DDPState(reducer, timeout=20, optimizer=plain, **options)
    model.register_comm_hook(state, cc.ddp_hook)
    if cc.settle(reducer, world).traits.named:
        state.bind(model)
    return model, state


def thrown_away(rank: int, world: int, reducers: list[str]) -> Any:
    told: dict[str, Any] = {}
    for text in reducers:
        stateful = cc.settle(cc.parse(text), world).traits.stateful
        (plain, first), (model, hook) = (unnamed(text, world, discardable=d) for d in (False, stateful))
        faults: list[str] = []
        for step in range(6):
            for way in THROWN.get(step, ()):
                g = gradients(rank, 100 + step)
                before = 0 if hook.attachment is None else hook.attachment.counters().bytes_sent
                with nullcontext() if way == "discard" else hook.ignoring(average=way == "exact"):
                    found = one(model, g)
                if way == "discard":
                    hook.discard()
                both = [[gradients(r, 100 + step)[n] for n in SHAPES] for r in range(world)]
                due = {"exact": [sum(gs) / world for gs in zip(*both, strict=True)], "local": both[rank]}.get(way)
                if due is not None and not all(
                    torch.allclose(a, b, atol=1e-6) for a, b in zip(found, due, strict=True)
                ):
                    faults.append(f"{way} before step {step}: not that mean")
                sent = hook.attachment.counters().bytes_sent - before
                if (sent == 0) is not (way == "local"):
                    faults.append(f"{way} before step {step}: {sent} bytes")
            g = gradients(rank, step)
            if not all(torch.equal(a, b) for a, b in zip(one(plain, g), one(model, g), strict=True)):
                faults.append(f"step {step}: another mean")
        twice = hook.report().state_bytes, first.report().state_bytes
        first.bind(plain)
        hook.bind(model)
        a, b = (models.own(h.state_dict()) for h in (first, hook))
        if a["step"] != b["step"] or hook.report().steps != 6:
            faults.append(f"{a['step']} and {b['step']} steps")
        faults += [f"{s} of {n}" for s, e in a["slots"].items() for n, t in e.items() if not t.equal(b["slots"][s][n])]
        if stateful and twice[0] != 2 * twice[1]:
            faults.append(f"bytes of state: {twice}")
        told[text] = faults
        first.attachment.detach()
        hook.attachment.detach()
    return told


def test_memory_is_as_if_the_pass_had_not_been(two: Workers) -> None:
    reducers = [*schemes.SCHEMES.values(), *MORE]
    for told in two.run(thrown_away, timeout=200, reducers=reducers):
        assert told == {text: [] for text in reducers}


def says_no(rank: int, world: int) -> Any:
    told: dict[str, Any] = {}
    model, hook = models.wrap(models.mlp(), cc.parse(EF), discardable=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told["nothing"] = models.caught(hook.discard)
    x = models.batches(rank, 1)[0]
    model(x).sum().backward()
    hook.discard()
    told["twice"] = models.caught(hook.discard)
    model(x).sum().backward()
    hook.rescale_error(1.0, 2.0)
    told["rescaled"] = models.caught(hook.discard)
    model(x).sum().backward()
    saved = hook.state_dict()
    hook.load_state_dict(saved)
    told["loaded"] = models.caught(hook.discard)
    model(x).sum().backward()
    optimizer.step()
    told["applied"] = models.caught(hook.discard)
    (torch.tensor(float("nan")) * model(x).sum()).backward()
    hook.discard()
    for enabled in (True, True, False):
        hook.enabled = enabled
        model(x).sum().backward()
        if enabled:
            optimizer.step()
    hook.discard()
    hook.enabled = True
    told["bad"] = hook.step, bool(all(t.isfinite().all() for t in models.slots(hook)["residual"].values()))
    told["kept"] = models.caught(lambda: hook.__class__.discard(bare(x)[1]))
    state = cc.DDPState(cc.parse(EF), timeout=20)
    told["unopened"] = models.caught(state.discard)
    for name, value in (("passes", 0), ("passes", True), ("passes", 1.5)):
        told[f"{name}={value}"] = models.caught(lambda n=name, v=value: setattr(hook, n, v))
    told["average"] = models.caught(lambda: hook.ignoring(average=1).__enter__())
    told["discardable"] = models.caught(lambda: cc.DDPState(cc.parse(EF), discardable=1))
    return told


def bare(x: Tensor) -> Any:
    model, hook = models.wrap(models.mlp(), cc.parse(EF))
    model(x).sum().backward()
    return model, hook


def test_what_cannot_be_taken_back_is_an_error(two: Workers) -> None:
    for told in two.run(says_no):
        for name in ("nothing", "twice", "rescaled", "loaded", "unopened"):
            assert told[name][0] == "StateError", name
            assert "there is no backward pass to take back" in told[name][1], name
        assert told["applied"][0] == told["kept"][0] == "StateError"
        assert "an optimizer has stepped since" in told["applied"][1]
        assert "discardable=True" in told["kept"][1]
        assert told["bad"] == (5, True)
        assert all("an integer, 1 or more" in told[f"passes={v}"][1] for v in (0, True, 1.5))
        assert told["average"][0] == told["discardable"][0] == "TypeError"


class Branches(nn.Module):
    """One of two branches, as it is asked for; a weight of the second lies in memory by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.left, self.right = models.mlp(2), models.mlp(1, seed=1), models.mlp(1, seed=2)
        self.right[0].weight = nn.Parameter(self.right[0].weight.detach().t().contiguous().t())

    def forward(self, x: Tensor, right: bool) -> Tensor:
        x = self.body(x)
        return self.right(x).sum() if right else self.left(x).sum()


def several(rank: int, world: int) -> Any:
    """Three passes a step by ``passes`` and by ``no_sync``; among the first alone, one rank takes the other branch."""
    faults: list[str] = []
    for text in ("EF21(TopK(ratio=0.05))", "Exact()", "Auto"):
        for view in (False, True):
            for unused in (False, True):
                grads: list[list[Tensor]] = []
                for way in ("passes", "no_sync"):
                    form = {"gradient_as_bucket_view": view, "find_unused_parameters": unused}
                    reducer = cc.Auto() if text == "Auto" else cc.parse(text)
                    model, hook = models.wrap(Branches(), reducer, megabytes=0.02, **form)
                    if text == "Auto":
                        hook.observers[0].decide(None)  # DDP's own sum
                    hook.passes = 3 if way == "passes" else 1
                    found: list[Tensor] = []
                    for step in range(3):
                        model.zero_grad(set_to_none=step != 2)
                        for part, x in enumerate(models.batches(rank, 3, start=3 * step)):
                            sent = hook.counters().bytes_sent
                            with model.no_sync() if way == "no_sync" and part < 2 else nullcontext():
                                right = part == 0 and rank == 0 if unused else part == 0
                                loss = model(x, right) + (0.0 if unused else model.module(x, not right))
                                loss.backward()
                            if way == "passes" and (hook.counters().bytes_sent > sent) is not (part == 2):
                                faults.append(f"{text}, part {part}: sent {hook.counters().bytes_sent - sent}")
                        found += [torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]
                    if hook.step != 3:
                        faults.append(f"{text}: {hook.step} steps")
                    grads.append(found)
                    hook.detach()
                if not all(torch.equal(a, b) for a, b in zip(*grads, strict=True)):
                    faults.append(f"{text}, view={view}, unused={unused}: not what no_sync() gives")
    return faults


def test_several_passes_are_one_step(two: Workers) -> None:
    assert two.run(several, timeout=100) == [[], []]


def incomplete(rank: int, world: int) -> Any:
    model = DDP(models.mlp(), bucket_cap_mb=0.05)
    state = cc.DDPState(cc.parse(EF), timeout=20)
    model.register_comm_hook(state, cc.ddp_hook)
    optimizer, other = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(models.mlp().parameters(), lr=0.1)
    state.passes = 3
    xs = models.batches(rank, 4)
    for x in xs[:2]:
        model(x).sum().backward()
    other.step()
    early = models.caught(optimizer.step)
    state.discard()
    optimizer.zero_grad()
    for x in xs[:2]:
        with state.ignoring(average=False):
            model(xs[3]).sum().backward()
            optimizer.zero_grad()
        model(x).sum().backward()
    state.passes = 1
    optimizer.zero_grad()
    model(xs[2]).sum().backward()
    optimizer.step()
    return early, state.attachment.step, models.flat(model)


def test_a_step_that_is_not_complete_goes_to_no_optimizer(two: Workers) -> None:
    results = two.run(incomplete)
    for early, step, found in results:
        assert early[0] == "RuntimeError"
        assert "SGD.step() after 2 of hook.passes = 3 backward passes" in early[1]
        assert step == 1
        assert torch.equal(found, results[0][2])


def without_compression(rank: int, world: int) -> Any:
    """``Auto`` has handed the buckets back to DDP's own sum, then picks a method, then goes back."""
    model, hook = models.wrap(models.mlp(), cc.Auto())
    xs = models.batches(rank, 3)
    hook.observers[0].decide(None)
    steps, found = [hook.observers[0].bypass is not None], []

    def back(*inputs: Tensor) -> Tensor:
        model.zero_grad()
        for x in inputs:
            model(x).sum().backward()
        return models.grads(model)

    found.append(back(xs[0]))
    steps.append(hook.step)
    hook.discard()
    with hook.ignoring():
        found.append(back(xs[0]))
    steps.append(hook.step)
    hook.passes = 2
    found.append(back(xs[0], xs[1]))
    hook.passes = 1
    steps.append(hook.step)
    found.append(back(xs[0]) + back(xs[1]))
    hook.observers[0].decide(cc.parse(EF))
    back(xs[2])
    kept = models.caught(hook.discard)[0]
    hook.observers[0].decide(None)
    hook.discard()
    steps.append(hook.step)
    return steps, kept, [torch.allclose(a, b, 1e-5, 1e-5) for a, b in zip(found[::2], found[1::2], strict=True)]


def test_where_nothing_is_compressed(two: Workers) -> None:
    for steps, kept, same in two.run(without_compression):
        assert steps == [True, 1, 0, 1, 3]
        assert kept == "StateError"
        assert same == [True, True]


# What is said, and what is not.


class Script:
    """A model, its hook, an optimizer, and inputs without end."""

    def __init__(self, rank: int, reducer: str, optimizer: Any = torch.optim.SGD, **form: Any) -> None:
        self.at, self.rank = 0, rank
        self.scaler = form.pop("scaler", None)
        options = {"discardable": form.pop("discardable", False), "scaler": self.scaler}
        self.options = form.pop("options", {"lr": 0.01})
        wrap = form.pop("wrap", lambda m: m)
        form.setdefault("megabytes", 0.02)
        inner = form.pop("module", None) or models.mlp(3)
        ddp, self.hook = models.wrap(inner, cc.parse(reducer), **form, **options)
        self.model = wrap(ddp)
        self.ddp = ddp
        self.optimizer = optimizer(self.model.parameters(), **self.options)

    def back(self, factor: float = 1.0) -> Tensor:
        (x,) = models.batches(self.rank, 1, start=self.at)
        self.at += 1
        loss = self.model(x).pow(2).mean() * factor
        loss.backward()
        return loss


def ordinary(s: Script) -> None:
    for t in range(4):
        s.optimizer.zero_grad(set_to_none=t % 2 == 0)
        s.back()
        torch.nn.utils.clip_grad_norm_(s.model.parameters(), 1.0)
        s.optimizer.step()
        with torch.no_grad():
            s.model(models.batches(s.rank, 1)[0])


def zeroed_after(s: Script) -> None:
    for _ in range(4):
        s.back()
        s.optimizer.step()
        s.optimizer.zero_grad()


def without_sync(s: Script) -> None:
    for _ in range(3):
        s.optimizer.zero_grad()
        with s.ddp.no_sync():
            s.back()
        s.back()
        s.optimizer.step()


def by_passes(s: Script) -> None:
    s.hook.passes = 2
    for _ in range(3):
        s.optimizer.zero_grad()
        s.back()
        s.back()
        s.optimizer.step()


def closures(s: Script) -> None:
    def closure() -> Tensor:
        s.optimizer.zero_grad()
        s.at = 0
        return s.back()

    for _ in range(4):
        s.optimizer.step(closure)


def scaled(s: Script) -> None:
    for t in range(5):
        s.optimizer.zero_grad()
        s.at += 1
        loss = s.model(models.batches(s.rank, 1, start=s.at)[0]).pow(2).mean()
        s.scaler.scale(loss * (float("inf") if t == 3 else 1.0)).backward()
        s.scaler.step(s.optimizer)
        s.scaler.update()


def by_hand(s: Script) -> None:
    for t in range(4):
        s.back()
        for p in s.model.parameters():
            if t % 2:
                p.data -= 0.01 * p.grad
            else:
                p.data = p.data - 0.01 * p.grad
            p.grad = None


def ignored(s: Script) -> None:
    for _ in range(3):
        s.optimizer.zero_grad()
        s.back()
        s.optimizer.step()
        for average in (True, False):
            with s.hook.ignoring(average=average):
                s.optimizer.zero_grad()
                s.back()
        s.optimizer.zero_grad()
        s.hook.enabled = False
        s.back()
        s.optimizer.zero_grad()
        s.hook.enabled = True


def discarded(s: Script) -> None:
    for t in range(6):
        s.optimizer.zero_grad()
        s.back()
        if t % 2:
            s.hook.discard()
        else:
            s.optimizer.step()


def in_parts(s: Script) -> None:
    """Two optimizers, of a half each."""
    parameters = list(s.model.parameters())
    halves = [torch.optim.SGD(parameters[:3], lr=0.01), torch.optim.Adam(parameters[3:], lr=0.01)]
    for _ in range(3):
        for o in halves:
            o.zero_grad()
        s.back()
        for o in halves:
            o.step()


def generator(s: Script) -> None:
    for _ in range(3):
        s.optimizer.zero_grad()
        s.back()
        s.optimizer.step()
        s.optimizer.zero_grad()
        s.back()


def in_place(s: Script) -> None:
    for t in range(5):
        s.optimizer.zero_grad(set_to_none=False)
        s.back()
        if t != 2:
            s.optimizer.step()


def adds_up(s: Script) -> None:
    for _ in range(4):
        s.optimizer.zero_grad()
        s.back()
        s.back()
        s.optimizer.step()


EF21 = schemes.SCHEMES["EF21"]
ADAM = {"optimizer": torch.optim.Adam}
FUSED = {**ADAM, "options": {"lr": 1e-3, "fused": True}}
VIEW, ONE = {"gradient_as_bucket_view": True}, {"megabytes": 25}
SILENT: list[tuple[Any, str, dict[str, Any]]] = [
    *((script, EF21, form) for script in (ordinary, zeroed_after) for form in ({}, ADAM, FUSED, VIEW, ONE, ONE | VIEW)),
    (ordinary, EF21, {"static_graph": True}),
    (ordinary, EF21, {"find_unused_parameters": True}),
    (without_sync, EF21, {}),
    (by_passes, EF21, {}),
    (by_passes, EF21, VIEW),
    (closures, EF, {"optimizer": torch.optim.LBFGS, "options": {"lr": 0.1, "max_iter": 5}}),
    (closures, EF, {"options": {"lr": 0.1}}),
    (by_hand, EF21, {}),
    (ignored, EF21, {}),
    (discarded, EF21, {"discardable": True}),
    (in_parts, EF21, {}),
    *((adds_up, EF, form) for form in ({}, VIEW, ONE, ONE | VIEW)),
    (adds_up, "Exact()", {}),
    (generator, "QSGD(bits=4)", {}),
]
LOUD: list[tuple[Any, str, dict[str, Any], str]] = [
    *((generator, EF, form, "zeroed") for form in ({}, VIEW, ONE, ADAM, FUSED)),
    (in_place, EF, {}, "zeroed"),
    (in_place, EF21, ONE, "zeroed"),
    (in_place, EF, ONE | VIEW, "zeroed"),
    *((adds_up, EF21, form, "added") for form in ({}, VIEW, ONE, FUSED)),
    (adds_up, "DGC(TopK(ratio=0.05))", {}, "added"),
    (adds_up, "Partition({'*weight': EControl(TopK(ratio=0.05)), '*': Exact()})", {}, "added"),
    (adds_up, EF21, ONE | VIEW, "both"),
]


def said(rank: int, world: int) -> Any:
    told: list[tuple[str, str, str, list[str]]] = []

    def play(script: Any, reducer: str, form: dict[str, Any]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if "DGC" in reducer:
                form = {**form, "optimizer": torch.optim.SGD}
                s = Script.__new__(Script)
                s.at, s.rank, s.scaler = 0, rank, None
                s.model, s.hook = hooked(models.mlp(3), reducer, megabytes=0.02)
                s.optimizer = torch.optim.SGD(s.model.parameters(), lr=0.01)
            else:
                s = Script(rank, reducer, **form)
            script(s)
            s.hook.detach()
        return [str(w.message) for w in caught if str(w.message).startswith("compcomm")]

    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    cases = [*((*c, "") for c in SILENT), (scaled, EF21, {"scaler": scaler}, ""), *LOUD]
    compiled = {"wrap": lambda m: torch.compile(m, backend="eager"), **ONE}
    for script, reducer, form, due in [*cases, (ordinary, EF21, compiled, ""), (generator, EF, compiled, "zeroed")]:
        told.append((f"{script.__name__}, {reducer}, {sorted(form)}", due, reducer, play(script, reducer, form)))
    return told


def test_it_is_said_once_where_it_is_seen_and_only_there(two: Workers) -> None:
    first, second = two.run(said, timeout=200)
    assert all(not lines for *_, lines in second), "rank 0 speaks"
    for name, due, _, lines in first:
        assert len(lines) == bool(due), (name, lines)
        for line in lines:
            assert ("were zeroed before any optimizer" in line) is (due in ("zeroed", "both")), (name, line)
            assert ("added up their gradients" in line) is (due in ("added", "both")), (name, line)
