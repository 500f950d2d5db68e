"""An optimizer takes a checkpoint: its own (``checkpoint``), an earlier version's, or torch's Adam's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.state import StateError
from ..engine.resuming import consent
from ..routes.choose import settle
from . import adam, legacy
from .checkpoint import (
    MERGED,
    OURS,
    identity,
    mark,
    numbers,
    place,
)
from .contract import Contract
from .flat import Flat

Entries = list[Mapping[str, Any]]


class Saved(NamedTuple):
    """What was read: numbers and strings; the attachment's memory; flat vectors; each rank's own tensors by parameter;
    and of the parameters that DDP ignores."""

    content: Mapping[str, Any]
    memory: Mapping[str, Any] | None
    merged: bool
    vectors: dict[str, Tensor]
    own: dict[str, list[Any]]
    alone: dict[str, Tensor]
    alone_steps: int


def load(opt: Contract, given: Any, load_groups: Callable[[dict[str, Any]], None]) -> None:
    """Takes a document of either form, or of torch's Adam: all of it or, on any mismatch on any rank, nothing on any.

    Raises:
        StateError: saying what does not fit.
    """
    with ExitStack() as undo:
        failure: Exception | None = None
        facts: dict[str, Any] = {}
        take: Callable[[], None] = _nothing
        try:
            facts, take = _prepare(opt, given, load_groups, undo)
        except Exception as error:
            failure = error
        if opt.exchange is not None:
            consent(opt.exchange.transport, facts, failure, "load_state_dict")
        elif failure is not None:
            raise failure
        take()


def _nothing() -> None:
    pass


def _prepare(
    opt: Contract, given: Any, load_groups: Callable[[dict[str, Any]], None], undo: ExitStack
) -> tuple[dict[str, Any], Callable[[], None]]:
    """What all ranks must agree on, and what takes it. Nothing is changed yet."""
    if not isinstance(given, Mapping) or "param_groups" not in given or "state" not in given:
        raise StateError(
            f"load_state_dict: {type(given).__name__} is no optimizer's state. Give what state_dict() or "
            f"portable_state_dict() of this optimizer returned."
        )
    saved = _read(opt, given)
    opt.check_extra(saved.content, saved.vectors, saved.own)
    exchange, memory = opt.exchange, saved.memory
    owed = _residual(opt, memory) if exchange is None and memory is not None else None
    remember: Callable[[], None] = _nothing
    if exchange is not None:
        remember = exchange.reset_state
        if memory is not None:
            found = memory if saved.merged else {place(opt.world, opt.group): memory}
            remember = exchange.prepare(found, saved.merged, undo)
    groups = [{k: v for k, v in g.items() if k != OURS} for g in given["param_groups"]]
    groups = [{**opt.defaults, **g} for g in groups]  # another optimizer's may lack some
    for group in groups:
        opt.check_group(group)
    facts = {"merged": saved.merged, **{k: saved.content.get(k) for k in ("steps", "frozen_at", "scaled")}}
    return facts, partial(
        _take, opt, saved, owed, remember, partial(load_groups, {"state": {}, "param_groups": groups})
    )


def _take(
    opt: Contract, saved: Saved, owed: Tensor | None, remember: Callable[[], None],
    load_groups: Callable[[], None],
) -> None:  # fmt: skip
    remember()
    load_groups()
    mark(opt)
    opt.load(saved.vectors, saved.own, saved.content)
    opt.alone.load(saved.alone, saved.alone_steps)
    if owed is not None:
        opt.absorb(owed)


def _read(opt: Contract, given: Mapping[str, Any]) -> Saved:
    entries = _in_order(opt, given)
    everyone = list(chain.from_iterable(g["params"] for g in opt.param_groups))
    by_id = {id(p): e for p, e in zip(everyone, entries, strict=True)}
    ours: Entries = [by_id[id(p)] for p in opt.flat.params]
    alone: Entries = [by_id[id(p)] for p in opt.alone.flat.params]
    filed = given[OURS] if OURS in given else given["param_groups"][0].get(OURS) if given["param_groups"] else None
    if not isinstance(filed, Mapping) or not filed or adam.went_on(filed, ours):
        content, vectors = adam.take_moments(opt, given, ours)
        _, lonely = adam.take_moments(opt, given, alone, opt.alone.flat)
        return Saved(content, None, True, vectors, {}, lonely, adam.steps(alone))
    content, where = _content(opt, filed)
    merged = where == MERGED
    if content["version"] == legacy.VERSION:
        content, ours, own, memory = legacy.read(opt, content, where, ours)
    else:
        memory, own = content["memory"], dict[str, list[Any]]()
        mine = [_mapping(_mapping(e.get(OURS)).get(where)) for e in ours]
        if any(name in m for m in mine for name in opt.OWN):
            own = {name: [m.get(name) for m in mine] for name in opt.OWN}
        memory = None if memory is None else {**memory, "slots": _slots(opt, mine)}
    vectors = _vectors(opt.flat, ours)
    return Saved(content, memory, merged, vectors, own, *_lonely(opt, alone))


def _slots(opt: Contract, mine: Entries) -> dict[str, dict[str, Any]]:
    """The slots of an attachment, from what lies with each parameter."""
    found: dict[str, dict[str, Any]] = {}
    for (name, _), entry in zip(opt.flat.named, mine, strict=True):
        for key, tensor in entry.items():
            slot, at, offset = str(key).partition("@")
            if slot not in opt.OWN:
                found.setdefault(slot, {})[f"{name}{at}{offset}"] = tensor
    return found


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}  # pyright: ignore[reportUnknownVariableType]


def _in_order(opt: Contract, given: Mapping[str, Any]) -> Entries:
    """Every parameter's entry, whatever they are filed under: numbers, or the names that torch gives them."""
    there = [len(g["params"]) for g in given["param_groups"]]
    here = [len(g["params"]) for g in opt.param_groups]
    if there != here:
        raise StateError(
            f"load_state_dict: groups of {there} parameters in the checkpoint and of {here} here. Make the optimizer "
            f"with the groups that it was saved with."
        )
    keys = list(chain.from_iterable(g["params"] for g in given["param_groups"]))
    state = given["state"]
    if not isinstance(state, Mapping) or not set(state) <= set(keys):
        count = len(state) if isinstance(state, Mapping) else "no"
        raise StateError(_other_model(count, len(keys)))
    return [_mapping(state.get(key)) for key in keys]


def _other_model(count: int | str, here: int) -> str:
    return (
        f"load_state_dict: moments of {count} parameters, and there are {here} here. Load it into the model that it "
        f"was saved with."
    )


def _content(opt: Contract, filed: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    mine = place(opt.world, opt.group)
    where = MERGED if MERGED in filed else mine
    content = filed.get(where)
    if not isinstance(content, Mapping):
        raise StateError(
            f"load_state_dict: the checkpoint has {', '.join(map(str, filed))}, and this is {mine}. Exact state is per "
            f"rank: load each rank's own, or save portable_state_dict() where the number of ranks changes."
        )
    for name, value in identity(opt).items():
        if content.get(name) != value and not (name == "version" and content.get(name) == legacy.VERSION):
            raise StateError(
                f"load_state_dict: {name} is {content.get(name)!r} in the checkpoint and {value!r} here. Load it into "
                f"the same configuration."
            )
    if "memory" not in content or not isinstance(content.get("averaged"), int):
        raise StateError("load_state_dict: the checkpoint is damaged: no 'memory' or 'averaged'. Use an older one.")
    return content, where


def _vectors(flat: Flat, entries: Entries) -> dict[str, Tensor]:
    """The flat vectors of the saved moments."""
    empty = [i for i, e in enumerate(entries) if not e]
    if empty:
        count = len(entries) - len(empty)
        raise StateError(_other_model(count, len(entries)))
    names: list[str] = (
        sorted(n for n in entries[0] if n not in ("step", OURS) and _there(entries[0][n])) if entries else []
    )
    found = {name: flat.zeros() for name in names}
    for name, vector in found.items():
        for i, (view, e) in enumerate(zip(flat.views(vector), entries, strict=True)):
            t = e.get(name)
            if not isinstance(t, Tensor) or t.shape != view.shape or t.dtype != torch.float32:
                what = f"shape {list(t.shape)} and {t.dtype}" if isinstance(t, Tensor) else repr(t)
                raise StateError(
                    f"load_state_dict: {name!r} of parameter {i} has {what} where shape {list(view.shape)} and float32 "
                    f"are due. Load it into the model that it was saved with."
                )
            view.copy_(t)
    return found


def _there(value: object) -> bool:
    """Whether it is more than the empty place that torch unflattens where it finds nothing."""
    return value is not None and value != {} if not isinstance(value, Tensor) else True


def _lonely(opt: Contract, entries: Entries) -> tuple[dict[str, Tensor], int]:
    """The vectors and steps of the parameters that DDP ignores."""
    if not entries:
        return opt.alone.vectors(), 0
    vectors = _vectors(opt.alone.flat, entries)
    if set(vectors) != set(opt.alone.vectors()):
        raise StateError(
            f"load_state_dict: moments {sorted(vectors)} of parameters that DDP ignores, where "
            f"{sorted(opt.alone.vectors())} are due. Use a checkpoint of this optimizer."
        )
    return vectors, adam.steps(entries)


def _residual(opt: Contract, memory: Mapping[str, Any]) -> Tensor | None:
    """The mean residual as a flat vector, None where it is all zero: where one rank goes on alone, it is added to what
    is applied next.

    Raises:
        StateError: there is no momentum that could take it up.
    """
    flat = opt.flat
    found, held = flat.zeros(), memory["slots"].get("residual", {})
    settled = settle(opt.reducer, 2)
    for layout in flat.layouts:
        for s in layout.row_major.segments:
            part = held.get(f"{s.name}@{s.offset}" if s.offset else s.name)
            if part is None:
                continue
            codec = settled.slots(s, 2)["residual"].codec
            part = part.reshape(-1)
            part = part if codec is None else codec.read(part, s.numel, 0, s.numel)
            number, offset = numbers(flat)[f"{s.name}@{s.offset}" if s.offset else s.name]
            if s.whole:
                flat.view(found, number).copy_(part.view(s.shape))
            else:  # row-major here too
                start = flat.starts[number] + offset
                found[start : start + s.numel] = part
    if not bool(found.any()):
        return None
    if any(float(g["betas"][0]) == 0.0 for g in opt.param_groups):
        raise StateError(
            "load_state_dict: betas[0] is 0, so there is no momentum to take up what several ranks had still to send. "
            "Go on with two ranks or more."
        )
    return found
