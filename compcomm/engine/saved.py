"""An attachment's memory in the form that frameworks save: one object with ``state_dict`` and ``load_state_dict``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class _Mergeable(Protocol):
    def portable_state_dict(self) -> dict[str, Any]: ...

    def load_portable_state_dict(self, state: dict[str, Any]) -> None: ...


class Portable:
    """The portable state of a hook behind the two calls that a framework makes.

    ``accelerator.register_for_checkpointing(hook.portable)``

    A framework that saves "objects with a state_dict" asks every rank for it and writes rank 0's answer. A hook's own
    ``state_dict`` is another on each rank, so all but rank 0's would be lost; the portable one is equal on all, and
    serves every rank, and another number of ranks.
    """

    def __init__(self, hook: _Mergeable) -> None:
        self._hook = hook

    def state_dict(self) -> dict[str, Any]:
        """See ``Attachment.portable_state_dict``. Collective: all ranks save at the same step."""
        return self._hook.portable_state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``Attachment.load_portable_state_dict``. Collective: every rank loads the same."""
        self._hook.load_portable_state_dict(dict(state))
