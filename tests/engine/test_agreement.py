"""Facts that all ranks must share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compcomm.engine import replicas
from compcomm.engine.agreement import AgreementError, _compare, agree, gather
from compcomm.hosts.names import named
from compcomm.transports.process_group import ProcessGroup


def test_alone_one_agrees_with_oneself() -> None:
    assert gather(ProcessGroup(), b"facts") == [b"facts"]
    assert gather(ProcessGroup(), b"") == [b""]
    agree(ProcessGroup(), {"seed": 1}, None)
    with pytest.raises(KeyError, match="mine"):
        agree(ProcessGroup(), {}, KeyError("mine"))
    replicas.check(ProcessGroup(), [("w", torch.ones(3)), ("h", torch.ones(2).half())], 1)


def test_differences_name_values_and_ranks() -> None:
    assert _compare("seed", [3, 3]) == ""
    assert _compare("seed", [3, 4, 3]) == "seed: 3 on ranks 0, 2, 4 on rank 1."
    assert _compare("list", [["a", "b"], ["a"]]) == "list: entry 1 is b on rank 0, nothing on rank 1."


class Lying(ProcessGroup):
    """A peer that is no compcomm."""

    def start(self, op):  # type: ignore[no-untyped-def]
        pending = super().start(op)
        if op.recv.dtype == torch.int64:
            op.recv[0] = 1 << 40
        return pending


def test_a_length_from_a_peer_is_not_believed() -> None:
    with pytest.raises(AgreementError, match="1099511627776 bytes"):
        gather(Lying(), b"facts")


def test_names_are_those_without_wrappers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].bias.requires_grad_(False)
    wrapped = nn.Module()
    wrapped.add_module("_orig_mod", model)
    assert [n for n, _ in named(wrapped)] == ["0.weight", "0.bias", "1.weight"]
    with pytest.raises(TypeError, match=r"module '0' makes sparse gradients"):
        named(nn.Sequential(nn.EmbeddingBag(3, 2, sparse=True)))
