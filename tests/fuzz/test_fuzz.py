"""The short form: a forged message for every compressor, and for a reducer of every class; and the fuzzer itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compcomm.core.compressor import Compressor
from compcomm.core.reducer import Reducer
from tests.contract.cases import COMPRESSORS, REDUCERS
from tests.fuzz import outcome
from tests.fuzz.__main__ import main
from tests.fuzz.cases import SUBJECTS, run
from tests.fuzz.outcome import Failure, Outcome, agree, observe

SEED = 1


@pytest.mark.parametrize("kind", COMPRESSORS, ids=lambda kind: kind.__name__)
def test_forged_messages_are_refused_or_read(kind: type[Compressor]) -> None:
    for c in COMPRESSORS[kind]:
        run(SEED, SUBJECTS.index(c))


@pytest.mark.parametrize("kind", REDUCERS, ids=lambda kind: kind.__name__)
def test_forged_deliveries_are_refused_or_read(kind: type[Reducer]) -> None:
    run(SEED, SUBJECTS.index(REDUCERS[kind][0]))


def test_an_unclear_error_and_a_difference_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    def unclear() -> list[Tensor]:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    with pytest.raises(Failure, match="which message is wrong"):
        observe("reference", unclear)
    with pytest.raises(TypeError):  # a bug is not an answer
        observe("reference", lambda: [torch.zeros(2) + None])  # type: ignore[operator]
    one, other = Outcome([torch.zeros(2)]), Outcome([torch.ones(2)])
    with pytest.raises(Failure, match="differently"):
        agree({"a": one, "b": other})
    with pytest.raises(Failure, match="a says 'a result', and b 'RuntimeError: rank 1"):
        agree({"a": one, "b": Outcome([], "RuntimeError: rank 1 lies")})
    monkeypatch.setattr(outcome, "SECONDS", -1.0)
    monkeypatch.setattr(outcome, "PATIENCE", -1.0)
    with pytest.raises(Failure, match="CPU time"):
        observe("reference", lambda: [])


@pytest.mark.slow
def test_the_command_names_the_case_that_ended_the_process(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--only", "3", "--seed", "5"]) == 0
    monkeypatch.setenv("COMPCOMM_LIBRARY", "/dev/null")
    monkeypatch.setenv("COMPCOMM_BACKEND", "none of ours")
    assert main(["--seed", "5", "--first", "17"]) == 1
    assert "Again: python -m tests.fuzz --seed 5 --only 17" in capfd.readouterr().out
