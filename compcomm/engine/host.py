"""How errors speak of a session's host: by which name, and with which cures.

The engine knows neither DDP nor optimizers, so what an error of its own tells somebody to do is the host's to say. A
host that hands in nothing is a script that calls ``Session`` itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """What a host's user reads, in ``Options(..., host=...)``. Beside names these are sentences, or the
    rest of one."""

    call: str = "Session"
    """What the user calls to make it: errors about arguments begin with it."""
    make: str = "take part"
    """What a rank could not do whose arguments are refused."""
    what: str = "session"
    over: str = "was closed. Make a new one, over a new transport."
    """Of one that takes no further step."""
    unnamed: str = "Give the names and parameters, such as list(model.named_parameters()), in place of None."
    """Where names are needed from the first step on."""
    nameless: str = "Make the session with a list of names and parameters in place of None."
    """Where names are needed later."""
    unfinished: str = (
        "After an error, call abandon_step() on every rank, then call {call} again; or go back to the last checkpoint."
    )
    """Where a step is open, as after an error in the middle of it."""
    alike: str = "Convert the parameters alike on every rank, before Session(...)."
    """Where they lie in unlike memory formats."""
    alone: str = "came in no bucket, so each rank trains its own. Submit its gradient too, on every rank."
    """Of parameters that train on each rank apart."""
    regroup: str = "End the training before that, or make a new transport and a new session."
    """Where the process group was destroyed."""


SCRIPT = Host()
"""Where nobody says more."""
