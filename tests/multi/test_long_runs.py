"""Nothing is lost over hundreds of steps: what was applied and what is remembered is what was due, on every host; four
ranks where they are two nodes, else two. All sums are in double precision but those of what is tested."""

from __future__ import annotations

from typing import Any

import pytest

from . import on_hosts
from .harness import Workers

pytestmark = pytest.mark.multi

STEPS = 200
SPARSE, CODED = "ErrorFeedback(TopK(ratio=0.05))", "ErrorFeedback(QSGD(bits=4, rounding='nearest'))"
REDUCERS = {
    "DDP": f"Partition({{'emb*': {SPARSE}, '*': ErrorFeedback(TwoPhase(QSGD(bits=4, rounding='nearest')))}})",
    "DDP between nodes": f"Partition({{'layer.*': {CODED}, '*': PowerSGD(2)}})",
    "FSDP2": f"Partition({{'emb*': {SPARSE}, '*': ErrorFeedback(SignScale())}})",
    "HSDP": CODED,
}


def conserves(rank: int, world: int, name: str) -> Any:
    """What was applied of this rank's shards, in double precision, and the merged memory."""
    hosted = on_hosts.host(name, whole=True)(REDUCERS[name])
    for step in range(STEPS):
        hosted.step(step)
    held = hosted.hook.portable_state_dict()["slots"]["residual"]
    return hosted.applied, {n: t.double() for n, t in held.items()}, hosted.hook.step


@pytest.mark.parametrize("name", on_hosts.HOSTS)
def test_nothing_is_lost_over_many_steps(two: Workers, four: Workers, name: str) -> None:
    workers = four if on_hosts.HOSTS[name] == 2 else two
    applied, held, steps = zip(*workers.run(conserves, name=name), strict=True)
    assert set(steps) == {STEPS} and held[0].keys() == {"embedding", "layer.weight", "head"}
    for parameter, off in on_hosts.gaps(name, applied, range(STEPS), held[0]).items():
        assert off < 1e-7, f"{parameter}: {off:.3g} of what was due is neither applied nor remembered"
