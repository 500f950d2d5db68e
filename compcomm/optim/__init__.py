"""Optimizers that send compressed momentum in place of gradients."""

from __future__ import annotations

from .onebit_adam import OneBitAdam
from .onebit_lamb import OneBitLamb
from .zero_one_adam import ZeroOneAdam

__all__ = ["OneBitAdam", "OneBitLamb", "ZeroOneAdam"]
