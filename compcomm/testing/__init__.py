"""The contracts, public: certify your own compressor in one line of your own test suite.

>>> import compcomm as cc
>>> from compcomm.testing import check_compressor
>>> check_compressor(cc.SignScale())
"""

from __future__ import annotations

from .compressors import COMPRESSOR_CHECKS, check_compressor
from .verdict import ContractError

__all__ = ["COMPRESSOR_CHECKS", "ContractError", "check_compressor"]
