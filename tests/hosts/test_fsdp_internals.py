"""A torch whose ``fully_shard`` is too old, or is not as it is known here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from compcomm.hosts.fsdp_internals import units


class FSDPModule(nn.Linear):
    """What ``fully_shard`` makes of a module, by its name."""


class Custom(FSDPModule):
    """As of the first torch that lets others carry its collectives."""

    def __init__(self, state: Any) -> None:
        super().__init__(2, 2)
        self.state = state

    def set_custom_reduce_scatter(self, comm: object) -> None:
        raise NotImplementedError

    def _get_fsdp_state(self) -> Any:
        return self.state


def test_a_torch_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.8.0")
    with pytest.raises(
        TypeError, match=r"attach\(Sequential\).*from torch 2\.9 on, and this is 2\.8\.0\. Upgrade torch"
    ):
        units(nn.Sequential(nn.Linear(2, 2), FSDPModule(2, 2)))


@pytest.mark.parametrize("missing", ["_fsdp_param_group", "fsdp_params", "modules"])
def test_a_torch_that_is_not_as_known(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    group = SimpleNamespace(**{n: () for n in ("fsdp_params", "modules") if n != missing}, device="cpu")
    state = SimpleNamespace() if missing == "_fsdp_param_group" else SimpleNamespace(_fsdp_param_group=group)
    with pytest.raises(
        RuntimeError, match=rf"fully_shard of torch 2\.99\.0 is not as in 2\.9 to 2\.15: .*{missing}"
    ) as told:
        units(Custom(state))
    assert isinstance(told.value.__cause__, AttributeError)


def test_a_model_without_units_has_none() -> None:
    assert units(nn.Sequential(nn.Linear(2, 2))) == []
    assert units(Custom(SimpleNamespace(_fsdp_param_group=None))) == [], "a module whose parameters lie further in"
