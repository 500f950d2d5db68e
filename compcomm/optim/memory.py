"""An optimizer's checkpoints: what is replicated in the form of ``torch.optim``, what is a rank's own beside it.

``{"state": {number: {moment: tensor}}, "param_groups": [...], "compcomm": {PLACE: {...}}}``, where PLACE is "rank 2 of
4" for exact state and "every rank" for merged one; both load with ``weights_only=True``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import coded
from ..reducer import settle
from ..store import StateError

if TYPE_CHECKING:
    from .base import CompressedOptimizer

VERSION = 1
_MERGED = "every rank"


def place(world: int, group: dist.ProcessGroup | None) -> str:
    """What this rank's own state is filed under."""
    return f"rank {dist.get_rank(group) if world > 1 else 0} of {world}"


def exact(opt: CompressedOptimizer, plain: dict[str, Any]) -> dict[str, Any]:
    """This rank's state; ``plain`` is what ``torch.optim.Optimizer`` makes of it."""
    exchange = opt.exchange
    own = exchange.attachment.state_dict() if exchange is not None else None
    return _document(opt, plain, place(opt.world, opt.group), own)


def portable(opt: CompressedOptimizer, plain: dict[str, Any]) -> dict[str, Any]:
    """All ranks' state, merged."""
    exchange = opt.exchange
    merged = exchange.attachment.portable_state_dict() if exchange is not None else None
    return _document(opt, plain, _MERGED, merged)


def _document(opt: CompressedOptimizer, plain: dict[str, Any], where: str, memory: Any) -> dict[str, Any]:
    vectors = {name: opt.flat.views(vector) for name, vector in opt.vectors().items()}
    state = {
        i: {name: views[i].clone(memory_format=torch.contiguous_format) for name, views in vectors.items()}
        for i in range(len(opt.flat.params))
    }
    content = {**_identity(opt), "memory": memory, "averaged": opt.averaged, **opt.extra()}
    return {**plain, "state": state, "compcomm": {where: content}}


def _identity(opt: CompressedOptimizer) -> dict[str, Any]:
    return {"version": VERSION, "optimizer": type(opt).__name__, "compressor": repr(opt.reducer)}


def load(opt: CompressedOptimizer, given: Any, load_groups: Callable[[dict[str, Any]], None]) -> None:
    """Takes a document of either form: all of it or, on any mismatch, nothing.

    Raises:
        StateError: saying what does not fit.
    """
    content, merged = _content(opt, given)
    vectors = _vectors(opt, given)
    _check_groups(opt, given)
    memory, exchange = content["memory"], opt.exchange
    opt.check_extra(content, vectors)
    owed = _residual(opt, memory) if exchange is None and memory is not None else None
    if exchange is not None:
        if memory is None:
            exchange.attachment.forget()
        elif merged:
            exchange.attachment.load_portable_state_dict(memory)
        else:
            exchange.attachment.load_state_dict(memory)
    load_groups({"state": {}, "param_groups": given["param_groups"]})
    for p in opt.flat.params:
        opt.state[p] = {}
    opt.load(vectors, content)
    if owed is not None:
        opt.absorb(owed)


def _content(opt: CompressedOptimizer, given: Any) -> tuple[Mapping[str, Any], bool]:
    if not isinstance(given, Mapping) or "param_groups" not in given or "state" not in given:
        raise StateError(
            f"load_state_dict: {type(given).__name__} is no optimizer's state. Give what state_dict() or "
            f"portable_state_dict() of this optimizer returned."
        )
    filed = given.get("compcomm")
    if not isinstance(filed, Mapping):
        raise StateError(
            f"load_state_dict: this is the state of another optimizer, such as torch.optim.Adam: it lacks what "
            f"{type(opt).__name__} keeps under 'compcomm'. Load the model alone: the moments are soon measured anew. "
            f"(torch's get_optimizer_state_dict leaves it out too: save optimizer.state_dict() itself.)"
        )
    mine = place(opt.world, opt.group)
    merged = _MERGED in filed
    content = filed.get(_MERGED if merged else mine)
    if not isinstance(content, Mapping):
        raise StateError(
            f"load_state_dict: the checkpoint has {', '.join(map(str, filed))}, and this is {mine}. Exact state is per "
            f"rank: load each rank's own, or save portable_state_dict() where the number of ranks changes."
        )
    for name, value in _identity(opt).items():
        if content.get(name) != value:
            raise StateError(
                f"load_state_dict: {name} is {content.get(name)!r} in the checkpoint and {value!r} here. Load it into "
                f"the same configuration."
            )
    if "memory" not in content or not isinstance(content.get("averaged"), int):
        raise StateError("load_state_dict: the checkpoint is damaged: no 'memory' or 'averaged'. Use an older one.")
    return content, merged


def _vectors(opt: CompressedOptimizer, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """The flat vectors of the saved moments."""
    state, params = given["state"], opt.flat.params
    if not isinstance(state, Mapping) or set(state) != set(range(len(params))):
        count = len(state) if isinstance(state, Mapping) else "no"
        raise StateError(f"load_state_dict: moments of {count} parameters, and there are {len(params)} here.")
    names: list[str] = sorted(state[0]) if params else []
    found = {name: opt.flat.zeros() for name in names}
    views = {name: opt.flat.views(vector) for name, vector in found.items()}
    for i, p in enumerate(params):
        for name in names:
            t = state[i].get(name)
            if not isinstance(t, Tensor) or t.shape != p.shape or t.dtype != torch.float32:
                what = f"shape {list(t.shape)} and {t.dtype}" if isinstance(t, Tensor) else repr(t)
                raise StateError(
                    f"load_state_dict: {name!r} of parameter {i} has {what} where shape {list(p.shape)} and float32 "
                    f"are due. Load it into the model that it was saved with."
                )
            views[name][i].copy_(t)
    return found


def _check_groups(opt: CompressedOptimizer, given: Mapping[str, Any]) -> None:
    there = [len(g["params"]) for g in given["param_groups"]]
    here = [len(g["params"]) for g in opt.param_groups]
    if there != here:
        raise StateError(f"load_state_dict: groups of {there} parameters in the checkpoint and of {here} here.")


def _residual(opt: CompressedOptimizer, memory: Mapping[str, Any]) -> Tensor | None:
    """The mean residual as a flat vector, None where it is all zero: where one rank goes on alone, it is added to what
    is applied next.

    Raises:
        StateError: there is no momentum that could take it up.
    """
    found, slots = opt.flat.zeros(), memory["slots"].get("residual", {})
    settled = settle(opt.reducer, 2)
    for batch in opt.flat.batches:
        for (start, _), layout in zip(batch.spans, batch.layouts, strict=True):
            for s in layout.segments:
                held = slots.get(f"{s.name}@{s.offset}" if s.offset else s.name)
                if held is not None:
                    codec = settled.slots(s, 2)["residual"].codec
                    held = held.reshape(-1)
                    held = held if codec is None else coded.read(held, codec, s.numel, 0, s.numel)
                    found[start + s.start : start + s.stop] = held
    if not bool(found.any()):
        return None
    if any(float(g["betas"][0]) == 0.0 for g in opt.param_groups):
        raise StateError(
            "load_state_dict: betas[0] is 0, so there is no momentum to take up what several ranks had still to send. "
            "Go on with two ranks or more."
        )
    return found
