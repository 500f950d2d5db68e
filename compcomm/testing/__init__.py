"""The contracts, public: certify your own compressor or reducer in one line of your own test suite.

>>> import compcomm as cc
>>> from compcomm.testing import check_compressor, check_reducer
>>> check_compressor(cc.SignScale())
>>> check_reducer(cc.AllGather(cc.SignScale()))
"""

from __future__ import annotations

from .compressors import COMPRESSOR_CHECKS, check_compressor
from .errors import ContractError
from .reducers import REDUCER_CHECKS, check_reducer

__all__ = ["COMPRESSOR_CHECKS", "REDUCER_CHECKS", "ContractError", "check_compressor", "check_reducer"]
