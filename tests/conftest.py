"""What all tests share: hypothesis without deadlines and with fixed seeds, one thread per operator."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "compcomm", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("compcomm")
torch.set_num_threads(1)
