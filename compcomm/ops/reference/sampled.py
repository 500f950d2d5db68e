"""Top-k with a threshold from a strided sample: at least 0.8 k of the largest elements, at most k.

For a row of n elements, of which k are wanted:

    m = max(ceil(n / 100), ceil(2 n / k))     how many to look at; all where m >= n, or k = n
    stride = 32 ceil(n / (32 m)) + 1, then 8 less until floor(n / stride) >= m
    start = floor(word 0 of Philox(counter = (offset, step, rank, 4), key) * stride / 2^32)
    threshold = the ceil(m k / n)-th largest of |y[start]|, |y[start + stride]|, ...

What reaches the threshold is sent: c elements. If c > k, the k largest of them, lowest index on ties. If c < 0.8 k, the
threshold is multiplied by 0.8 (fp32) and they are counted again, ten times at most, and after that the k largest are
sent. So what is sent are always the s largest elements for an s in [0.8 k, k], and
``|x - C(x)|^2 <= (1 - s/n) |x|^2``.

Lin, Han, Mao, Wang, Dally 2018 (arXiv:1712.01887), the sampled selection of their published program. There, what
exceeds k after the adaptation is cut off by index, which favours the front of a tensor; here it never is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .philox import philox
from .rows import Row, ceil_div, load, rows
from .topk import check_topk_rows, largest, send, sizes

STREAM = 4


def plan(n: int, k: int) -> tuple[int, int]:
    """(stride, top): every stride-th element is looked at, and the threshold is the top-th largest of those."""
    m = max(ceil_div(n, 100), ceil_div(2 * n, k))
    if m >= n or k == n:
        return 1, k
    stride = 32 * ceil_div(n, 32 * m) + 1
    while n // stride < m:
        stride -= 8
    return stride, ceil_div(m * k, n)


def _count(y: Tensor, row: Row, step: int, rank: int) -> int:
    """How many elements are sent."""
    n, k, magnitude = row.numel, row.k, sizes(y)
    stride, top = plan(n, k)
    word = philox(torch.tensor([row.offset], dtype=torch.int64), step, rank, STREAM, row.key)[0]
    start = int(word) * stride >> 32
    threshold = torch.sort(magnitude[start::stride], descending=True).values[top - 1].view(torch.float32)
    for _ in range(11):
        count = int((magnitude >= threshold.view(torch.int32)).sum())
        if 5 * count >= 4 * k:
            return min(count, k)
        threshold = threshold * 0.8
    return k


def topk_sampled_encode(
    x: Tensor,
    add: Tensor | None,
    wire: Tensor,
    table: Tensor,
    status: Tensor,
    decay: float,
    add_scale: float,
    step: int,
    rank: int,
) -> None:
    """``wire <- the s largest |y|`` of ``y = decay*x + add_scale*add``, 0.8 k <= s <= k; ``x <- y`` without them."""
    check_topk_rows("topk_sampled_encode", x, add, wire, table, status)
    for row in rows(table):
        y = load(x, add, row, status, decay, add_scale)
        send(x, wire, row, y, largest(y, _count(y, row, step, rank) if row.k else 0))
