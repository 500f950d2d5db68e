"""attach, for a model that fully_shard has taken: rows of a reduce-scatter, or shards between nodes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import nn

from ..core.layout import Layout
from ..core.reducer import Reducer
from ..engine.agreement import agree
from ..engine.attachment import Attachment
from ..engine.options import Options
from ..routes.exact import Exact
from .announce import announce, gathered, held
from .auto import Auto, AutoController
from .fsdp2 import check_units, open_rows
from .fsdp_internals import Unit
from .hsdp import Peers, check_between, open_between, shard_groups
from .joining import connect, decline, patience
from .names import SHARDED
from .sharded_attachment import ShardedAttachment


def attach_sharded(
    model: nn.Module, found: Sequence[Unit], reducer: Any, between: Any, weights: Any, group: Any, timeout: Any,
    options: dict[str, Any],
) -> Attachment:  # fmt: skip
    """``attach`` for a model with these units; arguments as there."""
    # Each shard has a session of its own, whose ranks do not hear of what another's cannot do: all meet before.
    auto = reducer if isinstance(reducer, Auto) else None
    meeting = None if between is None else connect(None, found[0].device, _longest(timeout))
    groups = [] if meeting is None else shard_groups(found[0], meeting)
    peers = Peers([])
    try:
        if group is not None:
            raise ValueError(
                f"attach(group={group!r}): a sharded model is averaged over the ranks that hold its shards: those of "
                f"fully_shard(..., mesh=mesh). Leave it out."
            )
        if auto is not None and found[0].device.type != "cpu":
            raise ValueError(f"{auto!r} on {found[0].device.type}: {auto.unmeasured}")
        check_units("attach", found, weights)
        chosen: Any = reducer if auto is None else Exact()
        given = Options(chosen, **options, host=SHARDED)
        limit = patience(timeout)
        if between is not None:
            peers = check_between(found, between, weights, groups)
    except Exception as error:
        if meeting is not None:
            agree(meeting, {}, error, host=SHARDED)
        decline(error, found[0].group, found[0].device)
    if meeting is None:
        attachment, lines = _rows(model, found, given, limit, weights, auto)
    else:
        agree(meeting, {"reducer": repr(reducer), "seed": given.seed}, None, host=SHARDED)
        attachment, lines = _between(model, found, given, limit, peers)
    lines = [f"{line}{held(attachment.setup.store.nbytes())}{_weights(attachment, weights)}" for line in lines]
    if auto is not None:
        lines = [auto.announce(attachment.steps.transport.world)]
        attachment.observers.insert(0, AutoController(auto, attachment, lambda: None, waits=True))
    if meeting is not None:
        meeting.close()
    for line in lines if (meeting.rank if meeting is not None else dist.get_rank(found[0].group)) == 0 else ():
        print(line, file=sys.stderr, flush=True)
    return attachment


def _weights(attachment: ShardedAttachment, weights: object) -> str:
    costs = [gather.cost for gather in attachment.gathers]
    return gathered(weights, *map(sum, zip(*costs, strict=True))) if costs else ""


def _longest(timeout: Any) -> Any:
    """How long ranks wait for each other to attach; what is no time is told of when they have met."""
    try:
        return patience(timeout)
    except (TypeError, ValueError):
        return 30


def _rows(model: nn.Module, found: Sequence[Unit], given: Options, limit: Any, weights: Any, auto: Auto | None) -> Any:
    lines: list[str] = []

    def trial(settled: Reducer, everything: Layout) -> None:
        lines.append(announce(settled, everything, dist.get_world_size(found[0].group), rows=True))

    return open_rows(model, found, given, limit, weights, trial, auto), lines


def _between(model: nn.Module, found: Sequence[Unit], given: Options, limit: Any, peers: Peers) -> Any:
    lines: list[str] = []

    def trial(settled: Reducer, everything: Layout) -> None:
        lines.append(announce(settled, everything, len(peers.ranks), kind="node"))

    return open_between(model, found, given, limit, peers, trial), lines
