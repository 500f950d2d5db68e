"""The owner's step: the format's two kernels around a scratch mean, put together by ``ops/reference/reencode.py``."""

from __future__ import annotations

from ..reference.reencode import qsgd_recode, sign_recode
from .registry import kernel

kernel("sign_recode")(sign_recode)
kernel("qsgd_recode")(qsgd_recode)
