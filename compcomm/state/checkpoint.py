"""Checkpoints in files that are whole or not there.

>>> cc.checkpoint.save("run/rank0.pt", {"model": model.state_dict(), "hook": attachment.state_dict()})  # doctest: +SKIP
>>> saved = cc.checkpoint.load("run/rank0.pt")                                                          # doctest: +SKIP

Whatever kills the process, the file is the old one or the new one: it is written under another name beside it, flushed
to the disk, and then renamed.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..core.state import StateError


def save(path: str | os.PathLike[str], state: Any) -> None:
    """``torch.save`` to ``path``, all or nothing. Makes the folder where there is none.

    What a kill in the middle leaves is the old file, and the unfinished one beside it as ``.NAME.PID.part``.
    """
    _plain(state, str(path))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    folder = os.open(target.parent, os.O_RDONLY)  # so that the new name outlives a loss of power too
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: str | os.PathLike[str], *, map_location: Any = "cpu") -> Any:
    """``torch.load`` with ``weights_only=True``: tensors, numbers, strings and containers of them, and no code.

    Raises:
        StateError: there is no such file, or it is empty, cut short, of another kind, or holds objects.
    """
    target = Path(path)
    try:
        size = target.stat().st_size
    except OSError as error:
        raise StateError(f"load({str(path)!r}): {error.strerror}. Is it the path that save() was given?") from error
    if not target.is_file():
        raise StateError(f"load({str(path)!r}): not a file. Give the path that save() was given.")
    try:
        return torch.load(target, map_location=map_location, weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle raises nearly everything
        if size == 0:
            reason = "it is empty"
        elif isinstance(error, pickle.UnpicklingError) and _zip(target):
            reason = f"it holds what is neither tensor, number, string nor a container of them [{_first(error)}]"
        elif not _begins(target):
            reason = f"it is no checkpoint [{_first(error)}]"
        else:
            reason = f"it is cut short or damaged [{_first(error)}]"
        raise StateError(
            f"load({str(path)!r}): {reason}; it has {size} bytes. Use an older checkpoint; one written by "
            f"compcomm.state.checkpoint.save is whole or not there."
        ) from error


def _plain(state: Any, path: str) -> None:
    """Raises TypeError for what ``load`` would refuse, where it is a model, an optimizer or the like."""
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    if callable(getattr(state, "state_dict", None)):
        name = type(state).__name__
        raise TypeError(f"save({path!r}): holds a {name} itself. Save what its state_dict() returns.")
    for part in parts:
        _plain(part, path)


def _begins(path: Path) -> bool:
    """Whether it begins as a file of ``torch.save`` does."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _zip(path: Path) -> bool:
    return zipfile.is_zipfile(path)


def _first(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:120]
