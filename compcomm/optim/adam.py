"""The state of torch's Adam and AdamW, taken over by an optimizer that warms up as they step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.state import StateError
from .contract import Contract
from .flat import Flat

Entries = Sequence[Mapping[str, Any]]


def step_of(entry: Mapping[str, Any]) -> int:
    """A parameter's own; 0 where it has none."""
    step = entry.get("step", 0)
    return int(step) if isinstance(step, int | float | Tensor) else 0


def steps(entries: Entries) -> int:
    """The most steps that a parameter has made."""
    return max(map(step_of, entries), default=0)


def went_on(filed: Mapping[str, Any], entries: Entries) -> bool:
    """Whether torch's Adam took our state over and has stepped since: what lies in its groups is of before then."""
    content = next(iter(filed.values()))
    made = content.get("steps") if isinstance(content, Mapping) else None
    counted = any("step" in e for e in entries)  # not in the first version's
    return counted and isinstance(made, int) and steps(entries) != made


def take_moments(
    opt: Contract, given: Mapping[str, Any], entries: Entries, flat: Flat | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What ``opt`` goes on warming up from: moments of T steps, T the most that a parameter has made.

    torch's Adam divides m by 1 - b1^t and v by 1 - b2^t, t the parameter's own count. Where ours does so with T, the
    moments of a parameter with another count are scaled so that this gives the same; it goes on as one of T steps.
    Where ours does not, moments are taken as they are after the division: the next step is as long as Adam's next
    would be, and not 3 to 7 times that.

    Raises:
        StateError: it is not Adam's, or ``opt`` cannot go on from it.
    """
    flat = opt.flat if flat is None else flat
    lacks = any(e and not all(isinstance(e.get(n), Tensor) for n in ("exp_avg", "exp_avg_sq")) for e in entries)
    if not opt.TAKES_ADAM or lacks or not any(given["state"].values()):
        hint = "Adam's and AdamW's state is taken" if opt.TAKES_ADAM else "OneBitAdam takes that of Adam and AdamW"
        raise StateError(
            f"load_state_dict: this is the state of another optimizer: it lacks what {type(opt).__name__} keeps under "
            f"'compcomm'. {hint}; else load the model alone: the moments are soon measured anew."
        )
    if any(g.get("amsgrad") for g in given["param_groups"]):
        raise StateError(
            "load_state_dict: amsgrad=True: its running maximum of the variance ends with the warm-up. Load the model "
            "alone: the moments are soon measured anew."
        )
    last = steps(entries)
    vectors = {"exp_avg": flat.zeros(), "exp_avg_sq": flat.zeros()}
    for name, which in (("exp_avg", 0), ("exp_avg_sq", 1)):
        for n, (view, e) in enumerate(zip(flat.views(vectors[name]), entries, strict=True)):
            t, made = e.get(name), step_of(e)
            if not isinstance(t, Tensor) or not made:
                continue
            if t.shape != view.shape or not t.dtype.is_floating_point:
                raise StateError(
                    f"load_state_dict: {name!r} of parameter {n} has shape {list(t.shape)} and {t.dtype} where shape "
                    f"{list(view.shape)} is due. Load it into the model that it was saved with."
                )
            beta = float(given["param_groups"][flat.owners[n]]["betas"][which])
            due = 1.0 - beta**last if opt.bias_correction else 1.0
            view.copy_(t.to(torch.float32)).mul_(due / (1.0 - beta**made))
    content = {"steps": last, "frozen_at": None, "averaged": last, "warmup": {"past": [], "rates": None}}
    return content, vectors
