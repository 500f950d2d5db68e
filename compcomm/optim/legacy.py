"""What version 1 of the optimizers' checkpoints had, in today's form.

There all that is ours lay in one dictionary beside "state" and "param_groups"; once the variance was frozen,
"exp_avg_sq" was what a step divides by; and vectors of a rank's own were flat, all parameters end to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..core.state import StateError
from .contract import Contract

VERSION = 1
_RENAMED = {"exp_avg_sq": "denominator", "exp_avg_sq_fresh": "exp_avg_sq"}
Entries = list[Mapping[str, Any]]


def read(
    opt: Contract, content: Mapping[str, Any], where: str, entries: Entries
) -> tuple[Mapping[str, Any], Entries, dict[str, list[Any]], Any]:
    """Content, entries, a rank's own tensors and the attachment's memory, as today's reader has them."""
    memory = content["memory"]
    if isinstance(memory, Mapping) and where in memory:
        memory = memory[where]
    if content.get("frozen_at") is not None:
        entries = [{_RENAMED.get(name, name): t for name, t in e.items()} for e in entries]
    local, own = content.get("local"), dict[str, list[Any]]()
    if isinstance(local, Mapping):
        for name in ("exp_avg", "update"):
            vector = local.get(name)
            if not isinstance(vector, Tensor) or vector.numel() != opt.flat.numel:
                raise StateError(f"load_state_dict: this rank's {name!r} is not {opt.flat.numel} numbers of float32.")
            sizes = [p.numel() for p in opt.flat.params]
            parts = zip(vector.split(sizes), opt.flat.params, strict=True)
            own[f"local {name}"] = [t.view(p.shape) for t, p in parts]
        own["anchor"] = list(local.get("anchor") or [])
        content = {**content, "local": {k: v for k, v in local.items() if not _tensors(v)}}
    return content, entries, own, memory


def _tensors(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list) and any(isinstance(v, Tensor) for v in value))
