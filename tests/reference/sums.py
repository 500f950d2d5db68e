"""The one order in which block sums are taken, so that a scale has the same bits in every implementation."""

from __future__ import annotations

import numpy as np


def tree(values: np.ndarray) -> np.float32:
    """Sixteen running sums, one per lane; then the upper half of the lanes is added to the lower, four times."""
    lanes = [np.float32(0)] * 16
    for i, v in enumerate(values.astype(np.float32)):
        lanes[i % 16] = lanes[i % 16] + v
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
    return lanes[0]
