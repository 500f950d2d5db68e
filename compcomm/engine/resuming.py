"""What a checkpoint's dictionary must say before anything of it is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.renamed import described
from ..core.state import StateError
from ..core.transport import Transport
from .agreement import AgreementError, agree

VERSION = 2
"""Of the checkpoints' form."""

_SAVED = {"version", "reducer", "slots"}


def local(state: Mapping[str, Any], place: str, here: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """The step and the slots that ``Attachment.state_dict`` wrote for the rank called ``place``.

    Raises:
        StateError: it is not there, or of another configuration than ``here`` says.
    """
    if not isinstance(state, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise StateError(f"load_state_dict: {type(state).__name__} is no dictionary. Give what state_dict() returned.")
    found = state.get(place)
    if isinstance(found, Mapping):
        return _content("load_state_dict", found, here, "Load it into the same configuration.")  # pyright: ignore[reportUnknownArgumentType]
    if set(state) >= _SAVED:
        raise StateError(
            "load_state_dict: this is what portable_state_dict() returned. Give it to load_portable_state_dict()."
        )
    ranks = [str(key) for key in state if _of_a_rank(key)]
    if not ranks:
        raise StateError(
            f"load_state_dict: keys {sorted(map(str, state))[:4]} are not those of an attachment's state_dict(). Is it "
            f"the model's? Give what this rank's attachment.state_dict() returned."
        )
    raise StateError(
        f"load_state_dict: the checkpoint has {', '.join(ranks)}, and this is {place}. Exact state is per rank: load "
        f"each rank's own, or save portable_state_dict() where the number of workers changes."
    )


def merged(state: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """The step and the slots that ``Attachment.portable_state_dict`` wrote.

    Raises:
        StateError: it did not write this, or of another configuration than ``here`` says.
    """
    if not set(state) >= _SAVED:
        is_exact = any(map(_of_a_rank, state))
        hint = "load_state_dict() takes them" if is_exact else "give what attachment.portable_state_dict() returned"
        raise StateError(
            f"load_portable_state_dict: keys {sorted(map(str, state))[:4]} are not those of a portable_state_dict(): "
            f"{hint}."
        )
    return _content("load_portable_state_dict", state, here, "Only the number of workers may differ.")


def _of_a_rank(key: object) -> bool:
    return str(key).startswith("rank ")


def _content(call: str, state: Mapping[str, Any], here: Mapping[str, Any], hint: str) -> tuple[int, Mapping[str, Any]]:
    for name, value in here.items():
        saved = state.get(name)
        if (described(saved) if isinstance(saved, str) else saved) != value:
            raise StateError(f"{call}: {name} is {saved!r} in the checkpoint and {value!r} here. {hint}")
    step, slots = state.get("step"), state.get("slots")
    if isinstance(step, bool) or not isinstance(step, int) or step < 0 or not isinstance(slots, Mapping):
        raise StateError(f"{call}: step={step!r} or the slots are not what was saved. Use an older checkpoint.")
    return step, slots  # pyright: ignore[reportUnknownVariableType]


def consent(transport: Transport, facts: Mapping[str, Any], failure: Exception | None, call: str) -> None:
    """Whether all ranks can take what they were given, asked before any of them takes it: ``failure`` is why this one
    cannot. Collective. ``facts``: what must be equal in what they take.

    Raises:
        StateError: on every rank, where one of them cannot.
        Exception: ``failure`` itself, on the rank that gave one.
    """
    try:
        agree(transport, facts, failure, call)
    except AgreementError as error:
        if error is failure:
            raise
        raise StateError(
            f"{error} No rank has taken anything. Give each its own file of one and the same step, or all of them the "
            f"same portable one."
        ) from error
