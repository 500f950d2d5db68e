"""The contract of a compressor, as a list of checks."""

from __future__ import annotations

from collections.abc import Callable

from ..core.compressor import Compressor
from . import backends, buckets, description, payload, properties

COMPRESSOR_CHECKS: tuple[Callable[[Compressor], None], ...] = (
    description.is_its_own_call,
    description.is_a_value,
    payload.sends_the_bytes_it_declares,
    payload.keeps_what_it_did_not_send,
    payload.adds_the_gradient_on_the_way,
    payload.keeps_non_finite_values_out,
    payload.decodes_many_at_once,
    payload.can_clear_what_it_sent,
    buckets.treats_a_bucket_as_a_loop,
    buckets.needs_no_room_for_exact_segments,
    buckets.splits_by_owner,
    buckets.repeats_itself,
    properties.never_exceeds_delta_or_omega,
    properties.is_unbiased_as_declared,
    properties.is_linear_as_declared,
    properties.keeps_rows_of_zeros,
    properties.settles_what_feedback_asks,
    backends.gives_the_same_bits_on_every_backend,
)


def check_compressor(c: Compressor) -> None:
    """Certifies a compressor: runs every check on it.

    Raises:
        ContractError: the first promise that is not kept.
    """
    if not isinstance(c, Compressor):
        raise TypeError(f"check_compressor({c!r}): give a compressor, made by its call: check_compressor(TopK(0.01)).")
    for check in COMPRESSOR_CHECKS:
        check(c)
