"""Every exported reducer keeps the contract, in the simulator."""

from __future__ import annotations

from typing import Any

import compcomm as cc
from compcomm.testing import REDUCER_CHECKS, conservation, elastic, pieces, state, traffic, worlds
from compcomm.testing.inputs import model_layout

from .cases import REDUCERS
from .selection import hold, pairs

COSTLY = (
    elastic.survives_a_change_of_workers,
    conservation.applies_nothing_of_a_bad_step,
    conservation.loses_nothing_over_many_steps,
    worlds.does_not_depend_on_how_buckets_are_cut,
    state.resumes_bit_for_bit,
    conservation.keeps_its_estimates_together,
    worlds.gives_every_rank_the_same_mean,
    traffic.sends_what_the_dry_run_says,
    conservation.leaves_dead_parameters_at_zero,
    state.can_take_a_step_back,
    worlds.averages_what_it_can_send_whole,
    traffic.keeps_to_one_sequence_of_collectives,
    worlds.leaves_rows_of_zeros,
    state.can_change_its_buckets_at_any_step,
    state.declares_its_slots,
    pieces.treats_pieces_alone,
)
TURNS = 8  # of 16: a further case runs two of them


@pairs(REDUCERS, REDUCER_CHECKS, COSTLY, TURNS)
def test_contract(case: cc.Reducer, checks: Any) -> None:
    hold(case, checks)


def test_promises_can_be_asked_of_every_parameter_and_piece() -> None:
    """Also of one that travels exact as it is smaller than what the compressor takes; a report asks all."""
    for case in (case for alike in REDUCERS.values() for case in alike):
        settled = cc.settle(case, 2)
        for layout in (model_layout(), *pieces.cut()):
            for s in layout.segments:
                promised = settled.promises(s)
                assert not settled.exact(s) or promised.conserves, f"{case!r}: {s.name}"
