"""The contract of a reducer, as a list of checks."""

from __future__ import annotations

from collections.abc import Callable

from ..core.reducer import Reducer
from . import conservation, description, elastic, pieces, state, traffic, worlds

REDUCER_CHECKS: tuple[Callable[[Reducer], None], ...] = (
    description.is_its_own_call,
    description.is_a_value,
    worlds.gives_every_rank_the_same_mean,
    worlds.does_not_depend_on_how_buckets_are_cut,
    worlds.averages_nodes_like_ranks,
    worlds.loses_no_more_than_it_says,
    worlds.averages_what_it_can_send_whole,
    worlds.adds_to_what_is_there,
    worlds.codes_a_sum_in_one_go,
    worlds.leaves_rows_of_zeros,
    conservation.loses_nothing_over_many_steps,
    conservation.applies_nothing_of_a_bad_step,
    conservation.keeps_its_estimates_together,
    conservation.leaves_dead_parameters_at_zero,
    state.declares_its_slots,
    state.resumes_bit_for_bit,
    state.can_take_a_step_back,
    state.can_change_its_buckets_at_any_step,
    pieces.treats_pieces_alone,
    elastic.survives_a_change_of_workers,
    traffic.sends_what_the_dry_run_says,
    traffic.keeps_to_one_sequence_of_collectives,
)


def check_reducer(r: Reducer) -> None:
    """Certifies a reducer in the simulator, with 1 to 5 ranks: runs every check on it.

    Raises:
        ContractError: the first promise that is not kept.
    """
    if not isinstance(r, Reducer):
        raise TypeError(f"check_reducer({r!r}): give a reducer, made by its call: check_reducer(Exact()).")
    for check in REDUCER_CHECKS:
        check(r)
