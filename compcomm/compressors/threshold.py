"""Threshold: what exceeds a threshold that a fitted distribution promises to be reached by a share of the elements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import ceil, log

import torch
from torch import Tensor

from ..core.compressor import ops
from ..core.deferred import deferred
from ..core.layout import Segment
from ..core.random import Rng
from ..core.rows import Find, Inputs
from ..core.state import Merge, Slot
from ..ops.scratch import scratch
from ..ops.work import kept
from . import fits
from .selection import Selection
from .topk import check_density, count, is_integer

FITS = ("exponential", "pareto", "gamma")
FIRST, PERIOD = 0.25, 5


@dataclass(frozen=True, repr=False)
class Threshold(Selection):
    """C(x) keeps the elements with |x_j| > eta_M, where eta_M is fitted in M stages so that about ratio * d do.

    Stage 1 fits all magnitudes and takes the threshold that a quarter of them should exceed (M = 1: that ratio of them
    should); each later stage fits what exceeded the one before, moved to begin at its smallest value, and asks for a
    share (4 ratio)^(1/(M-1)) of it. ``fit``: "exponential"; "pareto", the generalised Pareto by moments; "gamma" in the
    first stage and Pareto after it. Every M is right on Laplace data; elsewhere more stages fit the tail better.

    M adapts: every 5 calls one stage less if on average more than 1.2 of the target exceeded the threshold, one more if
    less than 0.8; between 1 and ceil(log(ratio)/log(0.5)). Before the first 5 calls, and where a route keeps no hints,
    M = 1 + round(log(4 ratio)/log(1/6)): 2 stages at 10 %, 3 at 1 %, 4 at 0.1 %.

    A fit can be wrong by orders of magnitude, so it does not decide alone. Where more than the capacity exceed the
    threshold, the largest of them are sent; where fewer than a quarter of the target t = ceil(ratio * d) do, the t
    largest elements. So what is sent are always the s largest, t/4 <= s <= capacity: |x - C(x)|^2 <= (1 - s/d)|x|^2,
    delta = ceil(t/4)/d. Biased, not linear; the sums are rounded, so homogeneous only nearly.

    Wire, per parameter: a top-k section (see ``TopK``) of capacity min(d, ceil(capacity * ratio * d)); unused bytes are
    zero.

    State: the hint "stages", three numbers per parameter: M, the calls since it last changed, and the sum of what
    exceeded the threshold as multiples of ratio * d.

    Source: Abdelmoniem, Elzanaty, Alouini, Canini 2021 (arXiv:2101.10761), SIDCo. Theirs normalises by |x| first, which
    changes nothing, begins with M = 1 (from there the rule above may never leave 1 and 2) and has neither capacity nor
    least count. A magnitude below 2^-126 counts as that in the logarithms of the gamma fit; where squares leave the
    range of fp32, "pareto" selects exactly.

    Args:
        ratio: target density in (0, 1], per parameter.
        fit: the distribution of the magnitudes.
        stages: M, fixed; None: adapted.
        capacity: room on the wire, as a multiple of ratio * d; at least 1.
        dense_below: parameters of fewer elements, and all 1-D ones, travel exact.
    """

    ratio: float
    fit: str = "exponential"
    stages: int | None = None
    capacity: float = 1.2
    dense_below: int = 1024

    tunable = "ratio"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density(repr(self), self.ratio, None)
        if self.fit not in FITS:
            raise ValueError(f"{self!r}: fit={self.fit!r} is no distribution. Choose one of {', '.join(FITS)}.")
        if self.stages is not None and (not is_integer(self.stages) or not 1 <= self.stages <= self.most):
            raise ValueError(
                f"{self!r}: stages={self.stages!r} is not in 1..{self.most}; more stages than log2(1/ratio) would each "
                "drop less than half of what they are given. Leave it out to adapt it."
            )
        number = isinstance(self.capacity, int | float) and not isinstance(self.capacity, bool)
        if not (number and 1 <= self.capacity < float("inf")):
            raise ValueError(f"{self!r}: capacity={self.capacity!r} is not a multiple of the target, 1 or above.")

    @property
    def most(self) -> int:
        """The largest number of stages."""
        return max(1, ceil(log(self.ratio) / log(0.5)))

    @property
    def usual(self) -> int:
        """The number of stages to begin with."""
        return max(1, min(self.most, 1 + round(log(self.ratio / FIRST) / log(1 / 6))))

    def target(self, numel: int) -> int:
        """Elements that should exceed the threshold."""
        return count(repr(self), self.ratio, None, numel)

    def kept(self, numel: int) -> int:
        return min(numel, max(1, ceil(Fraction(repr(self.capacity)) * Fraction(repr(self.ratio)) * numel)))

    def delta(self, numel: int) -> float | None:
        return -(-self.target(numel) // 4) / numel if numel else 1.0

    def slots(self, segment: Segment) -> Mapping[str, Slot]:
        return {} if self.stages else {"stages": Slot(Merge.DROP, numel=3)}

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        numel, room, target = kept(i.table, (self, i.x.device), partial(self._columns, i.table, i.x.device))
        memory = None if self.stages else hints.get("stages")
        limit, found = self.exceeding(i, self._stages(memory, numel))
        if memory is not None:
            self._learn(memory.view(-1, 3), found / (self.ratio * numel.to(torch.float32)).clamp(min=1e-300))
        few = 4 * found < target
        counts = torch.where(few, target, torch.minimum(found, room))
        bounds = torch.where(few | (found > room), 0.0, limit)
        # The gradient was reported already, and is not in x any more.
        seen = scratch("seen", i.status.numel(), torch.uint8, i.status.device).zero_()
        ops.topk_some_encode(i.x, None, i.wire, i.table, seen, 1.0, 1.0, counts, bounds)

    def _columns(self, table: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Per row its elements, the room in its section, and how many should exceed the threshold."""
        targets = torch.tensor([self.target(n) for n in table[:, 2].tolist()], dtype=torch.int64)
        return table[:, 2].to(device), table[:, 6].to(device), targets.to(device)

    def _rounds(self, stages: Tensor) -> int:
        """How many fits the row with the most stages takes; where only the device knows, all that there may be."""
        if not len(stages) or deferred(stages):
            return (self.stages or self.most) if len(stages) else 0
        return int(stages.max())

    def exceeding(self, i: Inputs, stages: Tensor) -> tuple[Tensor, Tensor]:
        """Thresholds (fp32) and how many elements exceed them, per row; x becomes y. 0 where a fit breaks down."""
        pareto = self.fit == "pareto"
        stats = torch.zeros(len(i.table), 5, dtype=torch.float64, device=i.x.device)
        ops.magnitude_stats(*i, stats, pareto, self.fit == "gamma")
        ratio = torch.full_like(stats[:, 0], self.ratio)
        shares = 1.0 / stages.to(torch.float32)  # named: integers divided by integers have torch's default dtype
        first = torch.where(stages == 1, ratio, FIRST if self.ratio < FIRST else ratio**shares)
        later = (ratio / first) ** (1.0 / (stages - 1).clamp(min=1).to(torch.float32))
        limit = self._first(stats, first)
        tail = scratch("tails", i.x.numel(), device=i.x.device)
        broken = torch.zeros_like(stages, dtype=torch.bool)
        for stage in range(1, self._rounds(stages) + 1):
            active = stages >= stage
            broken |= active & ~(torch.isfinite(limit) & (limit >= 0))
            now = torch.where(active & ~broken, limit, torch.nan)
            ops.tail_stats(i.x, tail, i.table, now.to(torch.float32), stats, stage == 1, self.fit != "exponential")
            limit = torch.where(stages > stage, self._next(stats, later), limit)
        limit = torch.where(broken, 0.0, limit)
        return limit.to(torch.float32), torch.where(broken, 0.0, stats[:, 0]).to(torch.int64)

    def _first(self, stats: Tensor, ratio: Tensor) -> Tensor:
        number, total, squares, _, logs = stats.unbind(1)
        mean = total / number
        if self.fit == "exponential":
            return fits.exponential(mean, ratio)
        if self.fit == "gamma":
            return fits.gamma(mean, logs / number * log(2.0), ratio)
        return fits.pareto(mean, mean.square(), squares / number - mean.square(), ratio)

    def _next(self, stats: Tensor, ratio: Tensor) -> Tensor:
        number, total, squares, least, _ = stats.unbind(1)
        mean = total / number
        over = mean - least
        if self.fit == "exponential":
            return least + fits.exponential(over, ratio)
        return least + fits.pareto(over, over.square(), squares / number - mean.square(), ratio)

    def _stages(self, memory: Tensor | None, numel: Tensor) -> Tensor:
        """M of each row: fixed, remembered, or (where a row is new) the usual one."""
        usual = torch.full_like(numel, self.stages or self.usual)
        if memory is None:
            return usual
        known = memory.view(-1, 3)[:, 0].nan_to_num(0.0, 0.0, 0.0)
        return torch.where(known >= 1, known.clamp(max=self.most).to(torch.int64), usual)

    def _learn(self, memory: Tensor, achieved: Tensor) -> None:
        """One call more; after the fifth, M moves and the count begins anew."""
        stages = self._stages(memory, torch.zeros(len(memory), dtype=torch.int64, device=memory.device))
        calls = memory[:, 1].nan_to_num(0.0, 0.0, 0.0).clamp(0, PERIOD - 1) + 1
        sums = memory[:, 2].nan_to_num(0.0, 0.0, 0.0).clamp(min=0) + achieved.to(torch.float32)
        due, mean = calls >= PERIOD, sums / calls
        step = (mean < 0.8).to(torch.int64) - (mean > 1.2).to(torch.int64)
        memory[:, 0] = torch.where(due, (stages + step).clamp(1, self.most), stages).to(memory.dtype)
        memory[:, 1] = torch.where(due, 0.0, calls)
        memory[:, 2] = torch.where(due, 0.0, sums)
