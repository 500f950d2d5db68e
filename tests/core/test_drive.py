"""How generators of collectives are run, without any reducer: over a transport, in lockstep, on paper."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch

from compcomm.core.collectives import AllReduce, AllReduceMax, Collective, Commit
from compcomm.core.drive import OutOfStepError, drive, lockstep, rehearse
from compcomm.core.transport import Pending, TransportError
from compcomm.transports.simulator import perform


class Done:
    def ready(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class Doubling:
    """A transport that is nothing of ours: two ranks of which the other one always has the same."""

    rank, world, device, staged, seconds = 1, 2, torch.device("cpu"), False, 0.0

    def __init__(self, lost_after: int = 99) -> None:
        self.left = lost_after

    def start(self, op: Collective) -> Pending:
        self.left -= 1
        if self.left < 0:
            raise TransportError("gone")
        if isinstance(op, AllReduce):
            op.buffer.mul_(2)
        return Done()

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


def summed(value: float, rounds: int = 2) -> Generator[Collective, bool, tuple[float, bool]]:
    t = torch.tensor([value])
    for _ in range(rounds):
        yield AllReduce(t)
    bad = yield Commit()
    return float(t), bad


@pytest.mark.parametrize("bad", [False, True])
def test_a_flow_runs_to_its_end_and_is_told_how_the_step_went(bad: bool) -> None:
    started: list[str] = []
    found = drive(summed(3.0), Doubling(), starting=lambda op: started.append(type(op).__name__), bad=lambda: bad)
    assert found == (12.0, bad)
    assert started == ["AllReduce", "AllReduce"]
    assert drive(summed(3.0), Doubling()) == (12.0, False)


def test_a_lost_transport_ends_a_flow() -> None:
    with pytest.raises(TransportError, match="gone"):
        drive(summed(1.0), Doubling(lost_after=1))


def run(flows: list[Any]) -> Any:
    rounds = lockstep(flows)
    while True:
        try:
            ops = next(rounds)
        except StopIteration as end:
            return end.value
        if not isinstance(ops[0], Commit):
            perform(ops)


def test_ranks_in_lockstep() -> None:
    assert run([summed(1.0), summed(2.0), summed(4.0)]) == [(21.0, None)] * 3


def test_flows_that_stand_at_their_commits_can_be_answered_later() -> None:
    flows = [summed(1.0), summed(2.0)]
    for ops in lockstep(flows):
        if isinstance(ops[0], Commit):
            break
        perform(ops)
    for flow in flows:
        with pytest.raises(StopIteration) as end:
            flow.send(True)
        assert end.value.value == (6.0, True)


def test_ranks_that_are_out_of_step_are_named() -> None:
    def other() -> Generator[Collective, bool, Any]:
        yield AllReduceMax(torch.ones(1))
        return None

    with pytest.raises(OutOfStepError, match="AllReduceMax"):
        run([summed(1.0), other()])
    with pytest.raises(OutOfStepError, match="Commit"):
        run([summed(1.0, rounds=1), summed(1.0, rounds=0)])
    with pytest.raises(OutOfStepError, match="1 at the end"):
        run([iter_of(AllReduce(torch.ones(1))), iter_of()])


def iter_of(*ops: Collective) -> Generator[Collective, bool, None]:
    yield from ops


def test_on_paper_nothing_is_performed_and_the_flow_is_closed() -> None:
    flow = summed(5.0, rounds=3)
    assert [type(op) for op in rehearse(flow)] == [AllReduce] * 3
    assert next(flow, None) is None
