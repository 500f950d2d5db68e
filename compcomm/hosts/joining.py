"""How a host's ranks come together: a transport of their own, and what a rank says that cannot take part."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from ..engine.agreement import agree
from ..transports import compat
from ..transports.process_group import ProcessGroup

_LONGEST = 1e9  # seconds: a generation


def patience(timeout: timedelta | float | None, call: str = "attach") -> timedelta | None:
    """The timeout of one collective; None: torch's default. ``call``: how errors name what it was given to.

    Raises:
        TypeError: it is no time.
        ValueError: it is not a positive time.
    """
    if timeout is None or isinstance(timeout, timedelta):
        found = timeout
    elif isinstance(timeout, bool) or not isinstance(timeout, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{call}: timeout={timeout!r}: give a number of seconds, a timedelta, or None for torch's own.")
    elif not 0 < timeout <= _LONGEST:
        raise ValueError(f"{call}: timeout={timeout!r} is not a positive time: give seconds, up to {_LONGEST:.0e}.")
    else:
        found = timedelta(seconds=float(timeout))
    if found is not None and found <= timedelta(0):
        raise ValueError(f"{call}: timeout={timeout!r} is not a positive time.")
    return found


def connect(
    group: dist.ProcessGroup | None,
    device: torch.device,
    timeout: timedelta | float | None = None,
    *,
    ring: bool = False,
) -> ProcessGroup:
    """A transport for one session over the ranks of ``group`` (None: all). Collective.

    ``timeout``: seconds (or timedelta) that one collective may take; None: torch's default, 30 minutes. ``ring``: see
    ``ProcessGroup.over``.
    """
    return ProcessGroup.over(group, device, patience(timeout, "connect"), ring=ring)


def connect_ranks(
    ranks: Sequence[int], device: torch.device, timeout: timedelta | None, like: dist.ProcessGroup | None = None
) -> ProcessGroup:
    """A transport over some of the default group's ranks, all of which call it, on the backend of ``like`` (None: the
    default group)."""
    if len(ranks) == 1:
        return ProcessGroup(None, device)
    return ProcessGroup(compat.group_of(ranks, timeout, compat.backend(like, device)), device)


def decline(error: Exception, group: dist.ProcessGroup | None, device: torch.device) -> NoReturn:
    """Raises ``error`` on a rank that cannot attach, after telling the peers that are about to."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1:
        with suppress(Exception):  # peers that never attach are not waited for long
            agree(connect(group, device, 30), {}, error)
    raise error
