"""1-bit LAMB between real processes, where it differs from the others: what it reconstructs, its ratios with any number
of threads, and parameters without a gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

from compcomm.optim import OneBitLamb

from . import models
from .compressed import KINDS, LR, SIZES, advance, content, given, joined, make, ratios, stretched
from .given import Given
from .harness import Workers

pytestmark = pytest.mark.multi
KIND = "OneBitLamb"
FREEZE, STEPS, BETAS = KINDS[KIND].freeze, KINDS[KIND].steps, (0.9, 0.95)


def moment(own: OneBitLamb, name: str = "exp_avg") -> Tensor:
    return joined(e[name] for e in own.state_dict()["state"].values())


def reconstructs(rank: int, world: int) -> Any:
    """With nothing lost: the gradient that m and w tell of, and momentum that was never scaled."""
    model, own = make(KIND, Given(), compressor="Exact()", betas=(0.9, 0.5))
    advance(KIND, model, own, rank, range(FREEZE))
    plain, errors = moment(own), list[float]()
    floor = stretched(content(own)["floor"]).double()
    for step in range(FREEZE, STEPS):
        m, w = moment(own).double(), moment(own, "exp_avg_sq").double()
        advance(KIND, model, own, rank, range(step, step + 1))
        g = [torch.cat([t.reshape(-1) for t in given(KIND, r, step).values()]) for r in range(world)]
        mean = torch.stack(g).double().mean(0)
        size = stretched([float(t.double().norm()) / t.numel() ** 0.5 for t in mean.split(SIZES)])
        h = (moment(own).double() - 0.9 * m) / (1 - 0.9)
        square = (moment(own, "exp_avg_sq").double() - torch.maximum(0.5 * w, floor**2)) / 0.5
        errors += [float(((h - mean) / size).abs().max()), float(((square - mean**2) / size**2).abs().max())]
        plain = 0.9 * plain + (1 - 0.9) * mean.float()
        errors.append(float(((moment(own) - plain) / size).abs().max()))
    scaling = content(own)["scaling"]
    own.detach()
    return errors, scaling


def test_nothing_lost_is_the_mean_gradient(three: Workers) -> None:
    """What is reconstructed is the mean gradient, and scales that differ by thousands leave no trace, but rounding."""
    for errors, scaling in three.run(reconstructs):
        assert max(scaling) / min(scaling) > 1000
        assert max(errors) < 2e-5


class Wide(nn.Module):
    """Enough elements for torch to share them out between threads."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 1, 400 * 333).view(400, 333))
        self.b = nn.Parameter(torch.linspace(-0.1, 0.2, 70_001))
        self.c = nn.Parameter(torch.linspace(-1, 3, 11))

    def forward(self, gradients: list[Tensor]) -> Tensor:
        return torch.stack([(p * g.to(p.dtype)).sum() for p, g in zip(self.parameters(), gradients, strict=True)]).sum()


def threads(rank: int, world: int, ddp: bool, dtype: str) -> Any:
    kept = torch.get_num_threads()
    torch.set_num_threads(1 + 2 * rank)
    try:
        model = Wide().to(getattr(torch, dtype))
        host: Any = DDP(model) if ddp else model
        own = OneBitLamb(host, lr=LR, freeze=3, weight_decay=0.1, betas=BETAS, timeout=20)
        found = []
        for step in range(8):
            draw = torch.Generator().manual_seed(100 * step + rank)
            own.zero_grad()
            host([torch.randn(p.shape, generator=draw) for p in model.parameters()]).backward()
            own.step()
            found.append((models.flat(model), *ratios(own)))
        scaling, floor = content(own)["scaling"], content(own)["floor"]
        own.detach()
        return found, scaling, floor, torch.get_num_threads()
    finally:
        torch.set_num_threads(kept)


@pytest.mark.parametrize(
    ("ddp", "dtype"),
    [
        (True, "float32"),
        (False, "bfloat16"),
        *(pytest.param(*p, marks=pytest.mark.full) for p in ((True, "bfloat16"), (False, "float32"))),
    ],
)
def test_the_number_of_threads_decides_nothing(three: Workers, ddp: bool, dtype: str) -> None:
    """x, c, phi, scales and floors are the same to the bit with 1, 3 and 5 threads."""
    results = three.run(threads, ddp=ddp, dtype=dtype)
    assert [count for *_, count in results] == [1, 3, 5]
    first, scaling, floor, _ = results[0]
    for found, *others, _ in results[1:]:
        assert others == [scaling, floor]
        for t, (one, other) in enumerate(zip(first, found, strict=True)):
            assert torch.equal(one[0], other[0]) and one[1:] == other[1:], t
    assert any(phi != 1.0 for phi in first[-1][2])
