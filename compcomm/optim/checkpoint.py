"""An optimizer's checkpoints: the form of ``torch.optim``, and in it what is ours.

``{"state": {i: {"step", "exp_avg", "exp_avg_sq", "denominator", "compcomm": {PLACE: {slot: tensor}}}},
"param_groups": [{..., "compcomm": {PLACE: {...}}}, ...]}``

Moments and steps are Adam's, so that ``torch.optim.AdamW`` goes on from them: "exp_avg_sq" is a variance at all times,
and beside it, once it is frozen, "denominator" has what a step divides by, to the bit. PLACE is "rank 2 of 4" for exact
state and "every rank" for merged one. What a rank has failed to send lies with the parameter that it is of, all else in
the first group: there ``torch.distributed.checkpoint.state_dict`` keeps it, flattened too, and no key means one thing
on one rank and another on the next. All of it loads with ``weights_only=True``, and so does what earlier versions wrote
(``legacy``; ``recall`` reads all of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .contract import Contract
from .flat import Flat

VERSION = 2
OURS = "compcomm"
KEYS = ("step", "exp_avg", "exp_avg_sq", "denominator", OURS)
"""Of a parameter's state: torch unflattens what it finds in the running optimizer's, by name."""
MERGED = "every rank"


def place(world: int, group: dist.ProcessGroup | None) -> str:
    """What this rank's own state is filed under."""
    return f"rank {dist.get_rank(group) if world > 1 else 0} of {world}"


def exact(opt: Contract, plain: dict[str, Any]) -> dict[str, Any]:
    """This rank's state; ``plain`` is what ``torch.optim.Optimizer`` makes of it."""
    where = place(opt.world, opt.group)
    memory = None if opt.exchange is None else opt.exchange.state_dict()[where]
    return _document(opt, plain, where, memory)


def portable(opt: Contract, plain: dict[str, Any]) -> dict[str, Any]:
    """All ranks' state, merged."""
    memory = None if opt.exchange is None else opt.exchange.portable_state_dict()
    return _document(opt, plain, MERGED, memory)


def _document(opt: Contract, plain: dict[str, Any], where: str, memory: Any) -> dict[str, Any]:
    flat, alone = opt.flat, opt.alone
    state = _entries(flat, opt.vectors(), opt.steps)
    ours: list[dict[str, Tensor]] = [{} for _ in state]
    for name, tensors in opt.own().items():
        for mine, tensor in zip(ours, tensors, strict=True):
            mine[name] = tensor.clone(memory_format=torch.contiguous_format)
    if memory is not None:
        where_of = numbers(flat)
        for slot, entries in memory["slots"].items():
            for key, tensor in entries.items():
                number, offset = where_of[key]
                ours[number][f"{slot}@{offset}" if offset else slot] = tensor
        memory = {k: v for k, v in memory.items() if k != "slots"}
    for entry, mine in zip(state, ours, strict=True):
        if mine:
            entry[OURS] = {where: mine}
    by_id = {id(p): e for p, e in zip(flat.params, state, strict=True)}
    lonely = _entries(alone.flat, alone.vectors(), alone.steps)
    by_id |= {id(p): e for p, e in zip(alone.flat.params, lonely, strict=True)}
    everyone = chain.from_iterable(g["params"] for g in opt.param_groups)
    content = {**identity(opt), "memory": memory, "averaged": opt.averaged, **opt.extra()}
    plain["param_groups"][0][OURS] = {where: content}
    return {**plain, "state": {i: by_id[id(p)] for i, p in enumerate(everyone)}}


def _entries(flat: Flat, vectors: Mapping[str, Tensor], steps: int) -> list[dict[str, Any]]:
    """Of every parameter, row-major, with a step of its own: torch's Adam counts in place."""
    views = {name: flat.views(vector) for name, vector in vectors.items()}
    return [
        {
            "step": torch.tensor(float(steps), dtype=torch.float32),
            **{name: v[i].clone(memory_format=torch.contiguous_format) for name, v in views.items()},
        }
        for i in range(len(flat.params))
    ]


def identity(opt: Contract) -> dict[str, Any]:
    return {"version": VERSION, "optimizer": type(opt).__name__, "compressor": repr(opt.reducer)}


def numbers(flat: Flat) -> dict[str, tuple[int, int]]:
    """The parameter's number, and where in it the piece begins, by what slots call it."""
    names = {s.name: i for i, s in enumerate(flat.layout.segments)}
    pieces = [s for layout in flat.layouts for s in layout.segments]
    return {f"{s.name}@{s.offset}" if s.offset else s.name: (names[s.name], s.offset) for s in pieces}


def mark(opt: Contract) -> None:
    """Names in the running optimizer what ``state_dict`` has: nobody takes it for one that has not begun, and torch
    knows what to look for in a flattened checkpoint."""
    for group in opt.param_groups:
        for p in group["params"]:
            opt.state[p] = dict.fromkeys(KEYS)
    opt.param_groups[0][OURS] = {}
