"""Which case a number stands for: compressors and reducers by turns, each with its own random damage."""

from __future__ import annotations

from random import Random

import torch

from compcomm.core.compressor import Compressor
from compcomm.core.reducer import Reducer
from tests.contract.cases import COMPRESSORS, REDUCERS
from tests.fuzz import decoders, routes

SUBJECTS: list[Compressor | Reducer] = [
    *(c for several in COMPRESSORS.values() for c in several),
    *(r for several in REDUCERS.values() for r in several),
]


def run(seed: int, number: int) -> str:
    """Runs a case and says what it was."""
    subject, random = SUBJECTS[number % len(SUBJECTS)], Random(f"{seed} {number}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if isinstance(subject, Compressor):
            return decoders.case(subject, random)
        return routes.case(subject, random)
    finally:
        torch.set_num_threads(threads)
