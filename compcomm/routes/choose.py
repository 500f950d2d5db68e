"""The route that fits a compressor and a number of ranks."""

from __future__ import annotations

import torch

from ..core.compressor import Compressor
from ..core.reducer import Reducer, Resolving
from .all_gather import AllGather
from .all_reduce import AllReduce
from .reduce_scatter import ReduceScatter
from .two_phase import TwoPhase


def settle(
    reducer: Reducer | Compressor, world: int, scheme: type[Reducer] | None = None, *, rows: bool = False
) -> Reducer:
    """A reducer that can run among ``world`` ranks; a compressor gets the route that fits it.

    ``scheme``: what the owners of the feedback scheme around it use; None: there is none around it. ``rows``: each rank
    wants its own row of a sharded host's buffer alone.

    =================== ==========================================================================
    reduce-scatter      rows are wanted
    all-reduce          the compressor is linear and loses nothing in fp32 sums
    all-gather          it is sparse, or there are two ranks (same bytes as two-phase, one round,
                        no second loss)
    two-phase           any other
    =================== ==========================================================================
    """
    if not isinstance(reducer, Reducer | Compressor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"settle({reducer!r}, {world!r}): this is no reducer. Give one, such as cc.ErrorFeedback(cc.TopK(0.01)), "
            f"or a compressor; cc.parse(text) makes one from text."
        )
    if isinstance(world, bool) or not isinstance(world, int) or world < 1:
        raise ValueError(f"settle({reducer!r}, world={world!r}): the number of ranks is an integer, 1 or more.")
    found = reducer if isinstance(reducer, Reducer) else _route(reducer, world, rows)
    found = found.resolve(Resolving(world, scheme, rows, settle))
    _ = found.traits  # now, so that the way of a bucket finds them
    return found


def _route(compressor: Compressor, world: int, rows: bool) -> Reducer:
    if rows:
        return ReduceScatter(compressor)
    if compressor.linear and compressor.dtype == torch.float32:
        return AllReduce(compressor)
    if compressor.sparse or world <= 2:
        return AllGather(compressor)
    return TwoPhase(compressor)
