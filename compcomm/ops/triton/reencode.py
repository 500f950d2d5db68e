"""The owner's step: the format's two kernels around a scratch mean, put together by ``ops/reference/reencode.py``."""

from __future__ import annotations

from ..reference.reencode import qsgd_reencode, sign_reencode
from .registry import kernel

kernel("sign_reencode")(sign_reencode)
kernel("qsgd_reencode")(qsgd_reencode)
