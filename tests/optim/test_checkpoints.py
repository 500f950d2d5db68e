"""Checkpoints that other optimizers write and read: torch's Adam, and the first version of ours."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

import compcomm as cc
from compcomm.optim import OneBitAdam

from .alone import drive, flat, give, gradients, parameters
from .alone import make as made
from .saved import ours, same, tensors

FREEZE = 5
OPTIONS: dict[str, Any] = {"ZeroOneAdam": {"var_update_scaler": 2, "local_step_scaler": 1, "local_step_clipper": 4}}


def through(state: Any) -> Any:
    """To a file and back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def make(kind: str, params: list[Tensor], **options: Any) -> Any:
    return made(kind, params, **{"freeze": FREEZE, **OPTIONS.get(kind, {}), **options})


def copies(params: list[Tensor]) -> list[Tensor]:
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


@pytest.mark.parametrize("back", [False, True])
def test_adam_and_ours_go_on_from_each_other(back: bool) -> None:
    """With bias correction the one is the other."""
    params = parameters()
    options = {"lr": 0.01, "freeze": 99, "bias_correction": True, "weight_decay": 0.01}
    there: Any = OneBitAdam(params, **options) if back else torch.optim.AdamW(params, lr=0.01)
    drive(there, params, range(6))
    again = copies(params)
    other: Any = torch.optim.AdamW(again) if back else OneBitAdam(again, **{**options, "lr": 0.5})
    other.load_state_dict(through(there.state_dict()))
    drive(there, params, range(6, 10))
    drive(other, again, range(6, 10))
    torch.testing.assert_close(flat(again), flat(params), rtol=1e-5, atol=1e-6)
    assert all(float(entry["step"]) == 10 for entry in other.state_dict()["state"].values())


def test_a_parameter_that_adam_has_stepped_less_often() -> None:
    """Corrected by the count of the others its moments are what they are by its own."""
    params = parameters()
    adam = torch.optim.AdamW(params, lr=0.01)
    for step in range(6):
        a, b, c = gradients(step)
        give(params, [a, b if step >= 4 else None, c])
        adam.step()
    own = OneBitAdam(params, freeze=99, bias_correction=True)
    own.load_state_dict(through(adam.state_dict()))
    for name, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999)):
        due = adam.state_dict()["state"][1][name] / (1 - beta**2)
        torch.testing.assert_close(own.state_dict()["state"][1][name] / (1 - beta**6), due)


def test_without_bias_correction_the_next_step_is_as_long_as_adams() -> None:
    params = parameters()
    there = torch.optim.AdamW(params, lr=0.01, weight_decay=0.0)
    drive(there, params, range(6))
    again, before = copies(params), flat(params)
    own = make("OneBitAdam", again, freeze=99)
    own.load_state_dict(through(there.state_dict()))
    drive(there, params, range(6, 7))
    drive(own, again, range(6, 7))
    one, other = flat(params) - before, flat(again) - before
    assert 0.9 < float(other.norm() / one.norm()) < 1.1 and float((one - other).norm() / one.norm()) < 0.3


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("kind", ["OneBitAdam", "ZeroOneAdam"])
def test_a_frozen_variance_is_a_variance_to_adam(kind: str, correction: bool) -> None:
    """Divided as Adam divides it, it is what steps are divided by here with bias correction."""
    params = parameters()
    own = make(kind, params, bias_correction=correction)
    drive(own, params, range(8))
    made = 5 if kind == "OneBitAdam" else own.refreshes
    for entry in own.state_dict()["state"].values():
        adams = (entry["exp_avg_sq"] / (1.0 - 0.999 ** float(entry["step"]))).sqrt()
        bare = (entry["denominator"] - 1e-8) * (1.0 if correction else (1.0 - 0.999**made) ** -0.5)
        torch.testing.assert_close(adams, bare, rtol=1e-5, atol=0)
    alone = copies(params)
    other = make(kind, alone, bias_correction=correction)
    bare_state = through(own.state_dict())
    for entry in bare_state["state"].values():
        due = entry.pop("denominator")
        assert due.shape == entry["exp_avg_sq"].shape
    other.load_state_dict(bare_state)
    for one, two in zip(own.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True):
        torch.testing.assert_close(two["denominator"], one["denominator"], rtol=1e-5, atol=0)


def test_what_adam_went_on_with_is_adams() -> None:
    """Ours lies in its groups still, and is of before then."""
    params = parameters()
    own = make("OneBitAdam", params)
    drive(own, params, range(8))
    adam = torch.optim.AdamW(params)
    adam.load_state_dict(through(own.state_dict()))
    assert same(ours(own.state_dict()), ours(adam.state_dict()))
    drive(adam, params, range(8, 10))
    own.load_state_dict(through(adam.state_dict()))
    assert own.frozen_at is None and own.steps == 10


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s["param_groups"][0].__setitem__("amsgrad", True), "amsgrad=True"),
        (lambda s: s["state"][0].pop("exp_avg"), "of another optimizer.*Adam's and AdamW's state is taken"),
        (lambda s: s["state"][0].__setitem__("exp_avg", torch.zeros(3)), r"has shape \[3\].*shape \[16, 12\] is due"),
    ],
)
def test_adams_that_do_not_fit(change: Any, says: str) -> None:
    params = parameters()
    adam = torch.optim.Adam(params)
    drive(adam, params, range(2))
    saved = through(adam.state_dict())
    change(saved)
    own = OneBitAdam(params)
    with pytest.raises(cc.StateError, match=says):
        own.load_state_dict(saved)
    assert own.steps == 0


def test_adams_in_the_others() -> None:
    params = parameters()
    adam = torch.optim.Adam(params)
    drive(adam, params, range(2))
    for kind in ("ZeroOneAdam", "OneBitLamb"):
        with pytest.raises(cc.StateError, match=f"lacks what {kind} keeps.*OneBitAdam takes that of Adam"):
            make(kind, params).load_state_dict(adam.state_dict())


def first_version(saved: Any) -> Any:
    """A state as version 1 wrote it."""
    (group,) = saved["param_groups"]
    content, mine = dict(ours(saved)), tensors(saved, "abc")
    frozen, lamb = content["frozen_at"] is not None, content["optimizer"] == "OneBitLamb"
    names = {"exp_avg": "exp_avg"}
    names |= {"denominator": "exp_avg_sq"} if frozen else {"exp_avg_sq": "exp_avg_sq"}
    names |= {"exp_avg_sq": "exp_avg_sq_fresh"} if frozen and lamb else {}
    state = {i: {names[n]: t for n, t in e.items() if n in names} for i, e in saved["state"].items()}
    if content.get("local"):
        vectors = {n: torch.cat([t.view(-1) for t in mine[f"local {n}"].values()]) for n in ("exp_avg", "update")}
        content["local"] = {**content["local"], **vectors, "anchor": list(mine["anchor"].values())}
    content["version"] = 1
    content.pop("scaled", None)
    group = {k: v for k, v in group.items() if k != "compcomm"}
    return {"state": state, "param_groups": [group], "compcomm": {"rank 0 of 1": content}}


@pytest.mark.parametrize("at", [3, 13, 14])
@pytest.mark.parametrize("kind", cc.optim.__all__)
def test_the_first_versions_are_taken(kind: str, at: int) -> None:
    params = parameters()
    own = make(kind, params)
    drive(own, params, range(at))
    again, other = copies(params), None
    other = make(kind, again)
    other.load_state_dict(through(first_version(own.state_dict())))
    drive(own, params, range(at, at + 6))
    drive(other, again, range(at, at + 6))
    assert torch.equal(flat(again), flat(params)) and same(own.state_dict(), other.state_dict())
