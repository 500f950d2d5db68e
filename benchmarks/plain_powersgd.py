"""PowerSGD from torch operators, as one writes a hook: matrices of one shape batched with `bmm`. For one bucket."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Plain:
    """State of ``hook``: residuals, and the factors Q of the last step, by shape."""

    def __init__(self, rank: int, min_ratio: float = 2) -> None:
        self.rank, self.min_ratio = rank, min_ratio
        self.residual: Tensor | None = None
        self.q: dict[tuple[int, int], Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)

    def worth(self, n: int, m: int) -> bool:
        return (n + m) * min(self.rank, n, m) * self.min_ratio < n * m


def hook(state: Plain, bucket: Any) -> torch.futures.Future[Tensor]:
    """The mean of a gradient by rank-r factors: two all-reduces, small parameters in the first."""
    flat, world = bucket.buffer(), dist.get_world_size()
    if state.residual is None:
        state.residual = torch.zeros_like(flat)
    flat += state.residual
    groups: dict[tuple[int, int], list[Tensor]] = {}
    exact: list[Tensor] = []
    for g in bucket.gradients():
        m = g.view(len(g), -1) if g.dim() > 1 else None
        if m is not None and state.worth(*m.shape):
            groups.setdefault((m.shape[0], m.shape[1]), []).append(m)
        else:
            exact.append(g.reshape(-1))
    batches = {shape: torch.stack(found) for shape, found in groups.items()}
    ps: list[Tensor] = []
    for (n, m), batch in batches.items():
        r = min(state.rank, n, m)
        q = state.q.get((n, m))
        if q is None:
            q = state.q[n, m] = torch.randn(len(batch), m, r, generator=state.generator)
        ps.append(torch.bmm(batch, q))
    first = torch.cat([*exact, *(p.view(-1) for p in ps)])
    dist.all_reduce(first)
    parts = first.div_(world).split([t.numel() for t in (*exact, *ps)])
    for g, mean in zip(exact, parts, strict=False):
        g.copy_(mean)
    qs: list[Tensor] = []
    for i, (p, batch) in enumerate(zip(ps, batches.values(), strict=True)):
        p.copy_(torch.linalg.qr(parts[len(exact) + i].view_as(p)).Q)
        qs.append(torch.bmm(batch.mT, p))
    second = torch.cat([q.view(-1) for q in qs])
    dist.all_reduce(second)
    means = second.div_(world).split([q.numel() for q in qs])
    state.residual.copy_(flat)  # what travelled exact is subtracted again below: its residual is zero
    for shape, found, p, mean in zip(groups, groups.values(), ps, means, strict=True):
        state.q[shape] = mean.view_as(state.q[shape]).clone()
        for g, value in zip(found, torch.bmm(p, state.q[shape].mT), strict=True):
            g.copy_(value)
    state.residual -= flat
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(flat)
    return done
