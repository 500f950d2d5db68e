"""Matrices turned between buffers: a convolution's in channels_last, and one that is stored transposed."""

from __future__ import annotations

import torch

from tests.ops.calls import Call

LINES = torch.tensor([[3, 0, 16, 9, 40], [5763, 5760, 1, 70, 35]])


def flat() -> torch.Tensor:
    return torch.linspace(-1.0, 1.0, 8213)


CALLS: list[Call] = [("turn", lambda: (torch.zeros(8216), flat(), LINES))]
