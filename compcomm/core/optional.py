"""Packages that only reports need: imported when a report is made, and named with the cure when they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def need(module: str, call: str, hint: str = "pip install 'compcomm[bench]'") -> Any:
    """The module of that name, for `call`.

    Raises:
        ImportError: it is not installed; the message says how to get it.

    >>> need("math", "doctest").sqrt(4.0)
    2.0
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{call}: {package} is not installed. Cure: {hint}.") from error
