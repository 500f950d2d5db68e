"""TwoMeans: one bit per element and two magnitudes per block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..core.compressor import Compressor, ops
from ..core.random import Rng
from ..core.rows import Find, Inputs
from .qsgd import check_block


@dataclass(frozen=True, repr=False)
class TwoMeans(Compressor):
    """C(x)_j = r0 where x_j < 0, else r1; r0 and r1 are the means of either part of a block of n (0 if it is empty).

    With S0, S1 the sums and n0, n1 the sizes of the parts, |x - C(x)|^2 = |x|^2 - S0^2/n0 - S1^2/n1, the least for this
    partition. S0^2/n0 + S1^2/n1 >= (|S0| + |S1|)^2/n = |x|_1^2/n >= |x|^2/n (Cauchy), so it never loses more than
    ``SignScale()`` and delta = 1/n; both keep 2/pi of Gaussian data. It gains where the parts differ in size: a few
    large elements of one sign, or a mean that is not zero. Biased, not linear.

    Wire, per parameter: r0 and r1 (fp32) of each block, then ceil(d/8) bytes of signs (1 = negative; zero is not), low
    bit first, padded to four bytes. Blocks of 512: 1.125 bits per element. A block whose sums overflow is not sent, and
    flagged like a non-finite number. No state.

    Source: Seide, Fu, Droppo, Li, Yu 2014 (Interspeech), "1-bit stochastic gradient descent and its application to
    data-parallel distributed training of speech DNNs", with error feedback as there: ``ErrorFeedback(TwoMeans())``.
    There a pair belongs to a column of a weight matrix; here to a block.

    >>> import torch, compcomm as cc
    >>> x = cc.Bucket(torch.tensor([-1.0, -3.0, 2.0, 0.0]), cc.Layout.of([("w", (2, 2))]))
    >>> cc.TwoMeans(dense_below=0).encode_(x, cc.Rng()).dense(x.layout).flat
    tensor([-2., -2.,  1.,  1.])
    """

    block: int = 512
    dense_below: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_block(repr(self), self.block)

    @property
    def alignment(self) -> int:
        return self.block

    def delta(self, numel: int) -> float | None:
        return 1.0 / max(1, min(numel, self.block))

    def section(self, numel: int) -> int:
        return 8 * -(-numel // self.block) + -(-numel // 8)

    def encode_rows(self, i: Inputs, gain: Tensor, rng: Rng, hints: Mapping[str, Tensor], find: Find) -> None:
        ops.two_means_encode(*i, self.block)

    def decode_rows(
        self, wires: Tensor, table: Tensor, skip: Tensor, out: Tensor, scale: float, accumulate: bool, rng: Rng,
        find: Find,
    ) -> None:  # fmt: skip
        ops.two_means_decode(wires, table, skip, out, scale, accumulate, self.block)
