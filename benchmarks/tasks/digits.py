"""Handwritten digits (1,797 pictures of 8 x 8 that come with scikit-learn), a small MLP, SGD with momentum."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from . import Batch

HIDDEN = 512
BATCH = 32  # pictures per rank and step
RATE, MOMENTUM, WARMUP = 0.05, 0.9, 10
HELD_OUT = 360  # pictures; divisible by 2, 3, 4, 5, 6 and 8 ranks


class Digits:
    """Ten classes, 64 inputs, two hidden layers; where top-k with momentum SGD is at home."""

    name = "digits"

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                "task digits: scikit-learn, which brings the pictures, is not installed; "
                "cure: pip install 'compcomm[bench]'."
            ) from error
        pictures, classes = load_digits(return_X_y=True)
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
        x = torch.tensor(pictures, dtype=torch.float32)[order] / 16
        y = torch.tensor(classes)[order]
        self.held_out, self.train = Batch(x[:HELD_OUT], y[:HELD_OUT]), Batch(x[HELD_OUT:], y[HELD_OUT:])
        self.data = f"scikit-learn's digits, {len(x):,} pictures"

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)
        )

    def optimizer(self, model: nn.Module) -> tuple[torch.optim.Optimizer, LRScheduler]:
        whole = not any(isinstance(p, DTensor) for p in model.parameters())  # torch's fused step takes nothing sharded
        optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, fused=whole)
        return optimizer, LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))

    def batch(self, seed: int, step: int, rank: int) -> Batch:
        draw = torch.Generator().manual_seed((seed * 1_000_003 + step) * 4096 + rank)
        chosen = torch.randint(len(self.train.x), (BATCH,), generator=draw)
        return Batch(self.train.x[chosen], self.train.y[chosen])

    def validation(self, rank: int, world: int) -> list[Batch]:
        share = slice(rank, HELD_OUT // world * world, world)
        return [Batch(self.held_out.x[share], self.held_out.y[share])]
