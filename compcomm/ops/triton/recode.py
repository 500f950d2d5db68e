"""The owner's step: the format's two kernels around a scratch mean, put together by ``ops/reference/recode.py``."""

from __future__ import annotations

from ..reference.recode import qsgd_recode, sign_recode
from .registry import kernel

kernel("sign_recode")(sign_recode)
kernel("qsgd_recode")(qsgd_recode)
