"""What a case came to under one implementation, and whether all came to the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from time import thread_time

from torch import Tensor

from compcomm.ops import native
from compcomm.testing.errors import same_bits
from tests.ops.sparse_case import using

SECONDS = 5.0
"""CPU time of a case on kernels. They take milliseconds, and under sanitizers a second; what takes longer believes a
number that a peer sent."""
PATIENCE = 30.0
"""The same for the reference, which is Python."""
_CLEAR = re.compile(r"message \d+|rank \d+|[Aa] peer|compcomm\.\w+: ")


class Failure(AssertionError):
    """A forged message did what it must not."""


@dataclass
class Outcome:
    """Results, or the error in place of them."""

    results: list[Tensor]
    error: str = ""


def observe(name: str, run: Callable[[], list[Tensor]]) -> Outcome:
    """``run`` under one implementation; its errors are those of a reader who knows what is wrong."""
    with using(name):
        since = thread_time()
        try:
            found = Outcome(run())
        except (RuntimeError, ValueError) as error:  # PeerError is one of the former
            found = Outcome([], f"{type(error).__name__}: {error}")
            if "please report" in found.error or not _CLEAR.search(found.error):
                raise Failure(f"{name}: an error that does not say which message is wrong: {found.error}") from error
        seconds = thread_time() - since
    if seconds > (PATIENCE if name == "reference" else SECONDS):
        raise Failure(f"{name}: took {seconds:.1f} s of CPU time.")
    return found


def agree(outcomes: dict[str, Outcome]) -> None:
    """All of them are the first one's."""
    (first, truth), *others = outcomes.items()
    for name, found in others:
        if found.error != truth.error:
            raise Failure(f"{first} says {truth.error or 'a result'!r}, and {name} {found.error or 'a result'!r}.")
        for a, b in zip(truth.results, found.results, strict=True):
            if not same_bits(a, b):
                raise Failure(f"{first} and {name} read the same message differently.")


def implementations() -> tuple[str, ...]:
    """The reference, and the kernels of every instruction set here."""
    return ("reference", *native.isas())
