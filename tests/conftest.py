"""What all tests share: hypothesis without deadlines and with fixed seeds, one thread per operator, and, where there is
no GPU, Triton's interpreter (it is chosen once per process, before the first kernel)."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "compcomm", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("compcomm")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(1)
