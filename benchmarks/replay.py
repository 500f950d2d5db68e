"""DDP without a model: buckets as DDP cuts them, filled with gradients, handed to a communication hook all at once.

What is left out is what compression does not touch: the forward and backward pass, and DDP's copies between gradients
and buckets (which `gradient_as_bucket_view=True` saves too). So the time of a step here is that of the hook alone, with
no backward pass to hide behind.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MIB = 1 << 20
Named = tuple[str, tuple[int, ...]]


class Bucket:
    """Speaks like `torch.distributed.GradBucket`, over parameters that need no backward pass."""

    def __init__(self, index: int, last: bool, names: list[str], parameters: list[nn.Parameter]) -> None:
        self._index, self._last, self.names, self._parameters = index, last, names, parameters
        self.flat = torch.zeros(sum(p.numel() for p in parameters))

    def index(self) -> int:
        return self._index

    def is_last(self) -> bool:
        return self._last

    def buffer(self) -> Tensor:
        return self.flat

    def set_buffer(self, flat: Tensor) -> None:
        self.flat = flat

    def parameters(self) -> list[nn.Parameter]:
        return self._parameters

    def gradients(self) -> list[Tensor]:
        parts = self.flat.split([p.numel() for p in self._parameters])
        return [part.view(p.shape) for part, p in zip(parts, self._parameters, strict=True)]


class Shapes(nn.Module):
    """Parameters of given names and shapes. They share one small memory: nobody looks at their values."""

    def __init__(self, shapes: Iterable[Named]) -> None:
        super().__init__()
        for name, shape in shapes:  # a module allows no dot in the name of a parameter of its own
            self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.zeros(1).expand(shape)))


def cut(model: nn.Module, first: int = MIB, cap: int = 25 * MIB) -> list[Bucket]:
    """Buckets in the order in which a backward pass fills them: the last parameter first.

    As in DDP, a bucket is closed by the parameter that brings it to its size: 1 MiB for the first, so that the wire
    has work soon, then 25 MiB.
    """
    groups: list[list[tuple[str, nn.Parameter]]] = [[]]
    size = 0
    for name, p in reversed(list(model.named_parameters())):
        if size >= (first if len(groups) == 1 else cap):
            groups.append([])
            size = 0
        groups[-1].append((name, p))
        size += 4 * p.numel()
    last = len(groups) - 1
    return [Bucket(i, i == last, [n for n, _ in g], [p for _, p in g]) for i, g in enumerate(groups)]


class Gradients:
    """Gradients that differ from step to step, and their true mean over the ranks, without a message.

    Element i on rank r in step t is s_layer * exp(h_i) * (cos(t) a + sin(t) b), where a and b are half common to all
    ranks and half r's own: layers differ in size by four orders of magnitude, elements within a layer by a log-normal
    factor (a heavy tail), the ranks agree in part, and large elements tend to stay large.
    """

    def __init__(self, buckets: Sequence[Bucket], rank: int, world: int, seed: int = 0) -> None:
        self.buckets = buckets
        self.own: list[tuple[Tensor, Tensor]] = []
        self.mean: list[tuple[Tensor, Tensor]] = []
        for bucket in buckets:
            common = torch.Generator().manual_seed(seed * 1009 + bucket.index())
            draws = [torch.Generator().manual_seed((seed * 1009 + bucket.index()) * 4096 + r + 1) for r in range(world)]
            size = torch.randn(bucket.flat.numel(), generator=common).exp_()
            for part in size.split([p.numel() for p in bucket.parameters()]):
                part.mul_(10.0 ** (-4 * float(torch.rand(1, generator=common))))
            own: list[Tensor] = []
            mean: list[Tensor] = []
            for _ in "ab":
                shared = torch.randn(size.shape, generator=common)
                total = torch.zeros_like(size)
                for r, draw in enumerate(draws):
                    mine = torch.randn(size.shape, generator=draw).add_(shared).mul_(size).mul_(math.sqrt(0.5))
                    total.add_(mine, alpha=1 / world)
                    if r == rank:
                        own.append(mine)
                mean.append(total)
            self.own.append((own[0], own[1]))
            self.mean.append((mean[0], mean[1]))

    def fill(self, step: int) -> None:
        """Puts this rank's gradient of a step into the buckets."""
        for bucket, (a, b) in zip(self.buckets, self.own, strict=True):
            torch.mul(a, math.cos(step), out=bucket.flat)
            bucket.flat.add_(b, alpha=math.sin(step))

    def error(self, step: int) -> float:
        """|what the buckets hold - true mean| / |true mean|; the buckets' content is lost."""
        wrong = right = 0.0
        for bucket, (a, b) in zip(self.buckets, self.mean, strict=True):
            truth = torch.mul(a, math.cos(step)).add_(b, alpha=math.sin(step))
            right += float(torch.linalg.vector_norm(truth)) ** 2
            wrong += float(torch.linalg.vector_norm(bucket.flat.sub_(truth))) ** 2
        return math.sqrt(wrong / right)


def run(
    buckets: Sequence[Bucket], hook: Callable[[Any, Any], Any], state: Any, finish: Callable[[], None] | None
) -> float:
    """Seconds from the first bucket's arrival until the mean of the last one is there and the step is over."""
    start = time.perf_counter()
    futures = [hook(state, bucket) for bucket in buckets]
    if finish:
        finish()
    for bucket, future in zip(buckets, futures, strict=True):
        result = future.wait()
        if result.data_ptr() != bucket.flat.data_ptr():
            bucket.flat.copy_(result)
    return time.perf_counter() - start
