"""One operation on each tensor of a list, as ``torch.optim`` calls them: torch gives them no public names.

Each rounds once per element, so that results do not depend on how elements are shared out between threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_torch: Any = torch

multiply: Callable[[Sequence[Tensor], Sequence[float]], None] = _torch._foreach_mul_
divide: Callable[[Sequence[Tensor], Sequence[float]], None] = _torch._foreach_div_
raise_to: Callable[[Sequence[Tensor], Sequence[float]], None] = _torch._foreach_clamp_min_
add: Callable[[Sequence[Tensor], Sequence[Tensor]], None] = _torch._foreach_add_
copy: Callable[[Sequence[Tensor], Sequence[Tensor]], None] = _torch._foreach_copy_


def finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all elements of all are: one pass, and one wait for the device."""
    norms = [n.float() for n in _torch._foreach_norm(tensors, torch.inf)] if tensors else []  # NaN, if there is one
    return not norms or bool((torch.stack(norms) < torch.inf).all())


def largest(tensors: Sequence[Tensor]) -> list[float]:
    """The largest element of each."""
    return torch.stack(_torch._foreach_max(tensors)).tolist() if tensors else []
