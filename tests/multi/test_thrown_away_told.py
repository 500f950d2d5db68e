"""A warning where gradients were thrown away or added up that memory has taken in: once, and nowhere else."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import schemes

from . import models
from .given import hooked
from .harness import Workers

pytestmark = pytest.mark.multi

SCRIPTS = {
    "ordinary": "zbcsf Zbcsf zbcsf Zbcsf",
    "zeroed after": "bsz bsz bsz bsz",
    "without sync": "znbs znbs znbs",
    "by passes": "p zbbs zbbs zbbs",
    "closures": "kkkk",
    "overflowing": "zbs zbs zbs z!s zbs",
    "by hand": "bH bh bH bh",
    "ignored": "zbs zi zI z-bz+ zbs zi zI z-bz+ zbs zi zI z-bz+",
    "discarded": "zbs zbd zbs zbd zbs zbd",
    "generator": "zbszb zbszb zbszb",
    "in place": "Zbs Zbs Zb Zbs Zbs",
    "adds up": "zbbs zbbs zbbs zbbs",
}


def play(
    rank: int, moves: str, reducer: str, optimizer: Any = torch.optim.SGD, compiled: bool = False, parts: bool = False,
    scaled: bool = False, options: Any = None, **form: Any,
) -> None:  # fmt: skip
    """A training script, whose moves are a letter each."""
    scaler, module, at = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=scaled), models.mlp(3), 0
    plain = torch.optim.SGD(module.parameters(), lr=0.01)
    ddp, hook = hooked(
        module, reducer, optimizer=plain, scaler=scaler if scaled else None, **{"megabytes": 0.02, **form}
    )
    model: Any = torch.compile(ddp, backend="eager") if compiled else ddp
    given, xs = list(model.parameters()), models.batches(rank, 16)
    halves = [torch.optim.SGD(given[:3], lr=0.01), torch.optim.Adam(given[3:], lr=0.01)]
    optimizers = halves if parts else [optimizer(given, **(options or {"lr": 0.01}))]

    def back(factor: float = 1.0) -> Tensor:
        nonlocal at
        at += 1
        loss: Tensor = model(xs[at]).pow(2).mean() * factor
        scaler.scale(loss).backward()
        return loss

    def closure() -> Tensor:
        nonlocal at
        at = 0
        optimizers[0].zero_grad()
        return back()

    for move in moves.replace(" ", ""):
        if move in "zZ":
            for o in optimizers:
                o.zero_grad(set_to_none=move == "z")
        elif move in "b!":
            back(float("inf") if move == "!" else 1.0)
        elif move in "niI":
            with ddp.no_sync() if move == "n" else hook.ignoring(average=move == "i"):
                back()
        elif move == "s":
            for o in optimizers:
                scaler.step(o)
            scaler.update()
        elif move == "k":
            optimizers[0].step(closure)
        elif move in "hH":
            for p in given:
                if move == "h":
                    p.data -= 0.01 * p.grad
                else:
                    p.data = p.data - 0.01 * p.grad
                p.grad = None
        elif move == "c":
            torch.nn.utils.clip_grad_norm_(given, 1.0)
        elif move == "f":
            with torch.no_grad():
                model(xs[0])
        elif move == "d":
            hook.discard()
        elif move == "p":
            hook.passes = 2
        else:
            hook.enabled = {"-": False, "+": True}[move]
    hook.detach()


EF, EF21 = schemes.SCHEMES["EF"], schemes.SCHEMES["EF21"]
ADAM: dict[str, Any] = {"optimizer": torch.optim.Adam}
FUSED = {**ADAM, "options": {"lr": 1e-3, "fused": True}}
LBFGS = {"optimizer": torch.optim.LBFGS, "options": {"lr": 0.1, "max_iter": 5}}
VIEW, ONE, COMPILED = {"gradient_as_bucket_view": True}, {"megabytes": 25}, {"compiled": True, "megabytes": 25}
FORMS: tuple[dict[str, Any], ...] = ({}, VIEW, ONE, ONE | VIEW)
CASES: list[tuple[str, str, dict[str, Any], str]] = [
    *(("ordinary", EF21, form, "") for form in (*FORMS, ADAM, FUSED)),
    *(("zeroed after", EF21, form, "") for form in (VIEW, FUSED)),
    *(("ordinary", EF21, form, "") for form in ({"static_graph": True}, {"find_unused_parameters": True}, COMPILED)),
    *((name, EF21, {}, "") for name in ("without sync", "by passes", "by hand", "ignored")),
    *(("closures", EF, form, "") for form in (LBFGS, {"options": {"lr": 0.1}})),
    ("by passes", EF21, VIEW, ""),
    ("overflowing", EF21, {"scaled": True}, ""),
    ("discarded", EF21, {"discardable": True}, ""),
    ("zeroed after", EF21, {"parts": True}, ""),
    *(("adds up", EF, form, "") for form in (VIEW, ONE)),
    ("adds up", "Exact()", {}, ""),
    ("generator", "QSGD(bits=4)", {}, ""),
    *(("generator", EF, form, "zeroed") for form in ({}, VIEW, ONE, ADAM, FUSED, COMPILED)),
    *(("in place", *case, "zeroed") for case in ((EF, {}), (EF21, ONE), (EF, ONE | VIEW))),
    *(("adds up", EF21, form, "added") for form in ({}, VIEW, ONE, FUSED)),
    ("adds up", "DGC(TopK(ratio=0.05))", {}, "added"),
    ("adds up", "Partition({'*weight': EControl(TopK(ratio=0.05)), '*': Exact()})", {}, "added"),
    ("adds up", EF21, ONE | VIEW, "both"),
]


def said(rank: int, world: int) -> list[list[str]]:
    told: list[list[str]] = []
    for name, reducer, form, _ in CASES:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            play(rank, SCRIPTS[name], reducer, **form)
        told.append([str(w.message) for w in caught if str(w.message).startswith("compcomm")])
    return told


def test_it_is_said_once_where_it_is_seen_and_only_there(two: Workers) -> None:
    first, second = two.run(said, timeout=200)
    assert not any(second), "rank 0 speaks"
    for case, lines in zip(CASES, first, strict=True):
        assert len(lines) == bool(case[-1]), (case, lines)
        for line in lines:
            assert ("were zeroed before any optimizer" in line) is (case[-1] in ("zeroed", "both")), (case, line)
            assert ("added up their gradients" in line) is (case[-1] in ("added", "both")), (case, line)
