"""attach, for a model that fully_shard has taken: rows of a reduce-scatter, or shards between nodes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn

from ..core.layout import Layout
from ..core.reducer import Reducer
from ..core.transport import Transport, TransportError
from ..engine.agreement import agree
from ..engine.attachment import Attachment
from ..engine.options import Options
from ..engine.replicas import few
from ..routes.exact import Exact
from .announce import announce, gathered, held
from .auto import Auto, AutoController
from .fsdp2 import alone, check_units, open_rows
from .fsdp_internals import Unit, dimensions
from .hsdp import Peers, check_between, open_between, shard_groups
from .joining import connect, patience
from .names import SHARDED
from .nodes import told
from .sharded_attachment import ShardedAttachment


def attach_sharded(
    model: nn.Module, found: Sequence[Unit], reducer: Any, between: Any, weights: Any, group: Any, timeout: Any,
    options: dict[str, Any],
) -> Attachment:  # fmt: skip
    """``attach`` for a model with these units; arguments as there."""
    first, auto = found[0], reducer if isinstance(reducer, Auto) else None
    failure: Exception | None = None
    given = limit = None
    try:
        if group is not None:
            raise ValueError(
                f"attach(group={group!r}): a sharded model is averaged over the ranks that hold its shards: those of "
                f"fully_shard(..., mesh=mesh). Leave it out."
            )
        if auto is not None and first.device.type != "cpu":
            raise ValueError(f"{auto!r} on {first.device.type}: {auto.unmeasured}")
        check_units("attach", found, weights)
        chosen: Any = reducer if auto is None else Exact()
        given = Options(chosen, **options, host=SHARDED)
        limit = patience(timeout)
    except Exception as error:
        failure = error
    if first.group is None:
        assert failure is not None
        raise failure
    lines: list[str] = []
    own = connect(first.group, first.device, _longest(timeout))
    try:
        # What each says of nodes comes first: whom else a rank asks depends on it.
        agree(own, {"between": told(between)}, failure if between is None else None, host=SHARDED)
        if between is None:
            assert given is not None
            attachment = open_rows(model, found, given, limit, weights, _rows(lines, own.world), own, auto)
        else:
            attachment = _between(model, found, reducer, given, limit, weights, between, own, failure, lines)
    except Exception:
        own.close()
        raise
    transport = attachment.steps.transport
    if auto is not None:
        lines = [auto.announce(transport.world, "rank" if between is None else "node")]
        attachment.observers.insert(0, AutoController(auto, attachment, lambda: None, waits=True))
    rest = f"{held(attachment.setup.store.nbytes())}{_weights(attachment, weights)}"
    if dist.get_rank() == first.outermost_rank:
        for line in [*(line + rest for line in lines), *_left_out(model, found, between)]:
            print(line, file=sys.stderr, flush=True)
    return attachment


def _rows(lines: list[str], world: int) -> Callable[[Reducer, Layout], None]:
    def trial(settled: Reducer, everything: Layout) -> None:
        lines.append(announce(settled, everything, world, rows=True))

    return trial


def _between(
    model: nn.Module, found: Sequence[Unit], reducer: Any, given: Options | None, limit: Any, weights: Any,
    between: Any, own: Transport, failure: Exception | None, lines: list[str],
) -> ShardedAttachment:  # fmt: skip
    """Each shard has a session of its own, whose ranks do not hear of what another's cannot do: all meet before."""
    first, peers = found[0], Peers([])
    try:
        meeting = connect(None, first.device, limit)
    except RuntimeError as error:  # of torch's store, or of the backend
        raise TransportError(
            f"attach(between={between!r}): not all ranks came to average between nodes. Call attach with the same "
            f"between= on every rank of the default group. [{error}]"
        ) from error
    try:
        groups = shard_groups(first, meeting)
        try:
            if failure is None:
                peers = check_between(found, between, weights, groups)
        except Exception as error:
            failure = error
        agree(meeting, {"reducer": repr(reducer), "seed": given.seed if given else 0}, failure, host=SHARDED)
    finally:
        meeting.close()
    assert given is not None

    def trial(settled: Reducer, everything: Layout) -> None:
        lines.append(announce(settled, everything, len(peers.ranks), kind="node"))

    return open_between(model, found, given, limit, peers, trial, own)


def _left_out(model: nn.Module, found: Sequence[Unit], between: object) -> list[str]:
    """What a user may have forgotten."""
    said: list[str] = []
    names = alone(model, found)
    if names:
        said.append(
            f"compcomm: {few(names)} {'is' if len(names) == 1 else 'are'} in no module that fully_shard has taken, so "
            f"each rank trains its own. Call fully_shard(model) on the outermost module too, before attach."
        )
    others = [n for n in dimensions(found[0]) if n not in (found[0].mesh.mesh_dim_names or ())]
    if between is None and others and not found[0].tensor_parallel:
        said.append(
            f"compcomm: nothing is averaged over {', '.join(map(repr, others))}. Where ranks along it train copies of "
            f"the model, give attach(..., between={others[0]!r})."
        )
    return said


def _weights(attachment: ShardedAttachment, weights: object) -> str:
    costs = [gather.cost for gather in attachment.gathers]
    return gathered(weights, *map(sum, zip(*costs, strict=True))) if costs else ""


def _longest(timeout: Any) -> Any:
    """How long ranks wait for each other to attach; what is no time is told of when they have met."""
    try:
        return patience(timeout)
    except (TypeError, ValueError):
        return 30
