"""Recorder: what a training run did, step by step, in a folder that outlives it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TextIO

from torch import Tensor

from .extras import need

if TYPE_CHECKING:
    from ..hooks.attachment import Attachment

STEPS, RUN = "steps.jsonl", "run.json"
_COUNTED = ("bytes_sent", "kernel_seconds", "wire_seconds", "exposed_seconds", "review_seconds")


class Recorder:
    """Writes a line of JSON per step, and TensorBoard scalars; ``python -m compcomm report FOLDER`` draws them.

    ::

        with cc.report.Recorder("runs/topk", hook) as recorder:
            for batch in batches:
                ...
                recorder.step(loss=loss)

    Call ``step`` on every rank or on rank 0 alone: rank 0 writes, and nothing is sent. A line holds "step", "seconds"
    since the start, cumulative "bytes_sent" of this rank, seconds in kernels, on the wire, exposed and in reviews, the
    given scalars; and where they are known, "choices" of a controller (when they changed) and "errors", |x - C(x)|/|x|
    by parameter (every ``errors_every`` steps: they cost a decoding). Lines are whole or not there for the reader; a
    run that resumes in the same folder goes on, and of two entries of a step the later one counts.

    Args:
        folder: made where it is missing.
        attachment: what ``attach`` returned, a ``DDPState``, or an optimizer of ``compcomm.optim``; None: the given
            scalars alone.
        tensorboard: True: also TensorBoard's own files in the folder; None: if the package is there; False: not.
        every: writes every that many steps.
        errors_every: 0: never.

    Raises:
        ValueError: a number that is none.
        ImportError: ``tensorboard=True`` and the package is missing.
    """

    def __init__(
        self,
        folder: str | Path,
        attachment: Any = None,
        *,
        tensorboard: bool | None = None,
        every: int = 1,
        errors_every: int = 100,
    ) -> None:
        for name, value, least in (("every", every, 1), ("errors_every", errors_every, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Recorder({name}={value!r}): a number of steps, an integer, {least} or more.")
        self.folder, self.every, self.errors_every = Path(folder), every, errors_every
        self._source = attachment
        self._count = 0
        self._begin = perf_counter()
        self._before = 0.0
        self._chosen: dict[str, float] = {}
        self._file: TextIO | None = None
        self._board: Any = None
        self._wanted = tensorboard
        if tensorboard:
            need("tensorboard", "Recorder(tensorboard=True)")

    def step(self, loss: Any = None, **scalars: Any) -> None:
        """Takes the end of a step in, after the optimizer's. ``loss`` and scalars: numbers or tensors of one element;
        of these None is left out."""
        self._count += 1
        attachment = _attachment(self._source)
        if self._count % self.every or not _first(attachment):
            return
        given = {"loss": loss, **scalars}
        numbers = {name: _number(name, value) for name, value in given.items() if value is not None}
        if self._file is None:
            self._open(attachment)
        line: dict[str, Any] = {
            "step": self._count if attachment is None else attachment.counters().step,
            "seconds": self._before + perf_counter() - self._begin,
            **numbers,
        }
        if attachment is not None:
            self._ask(attachment, line)
        self._write(line)

    def close(self) -> None:
        """Ends the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        self._file = self._board = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, attachment: Attachment, line: dict[str, Any]) -> None:
        counters = attachment.counters()
        line.update({name: getattr(counters, name) for name in _COUNTED})
        line["reducer"] = repr(attachment.reducer)
        choices = attachment.choices() if counters.controlled else {}
        if choices != self._chosen:
            line["choices"] = self._chosen = choices
        if self.errors_every and self._count % self.errors_every == 0:
            errors = {n: e for n, e in attachment.report().relative_error.items() if e is not None}
            if errors:
                line["errors"] = errors

    def _open(self, attachment: Attachment | None) -> None:
        from ..__about__ import about

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / STEPS
        if path.exists():
            mended = _whole_lines(path)
            last = json.loads(mended[-1]) if mended else {}
            self._before = float(last.get("seconds", 0.0))
        self._file = path.open("a", encoding="utf-8")
        sizes = {} if attachment is None else {n: p.numel() for n, p in attachment.parameters}
        run = {
            **about(),
            "reducer": None if attachment is None else repr(attachment.reducer),
            "world": 1 if attachment is None else attachment.wire.world,
            "parameters": sizes,
        }
        (self.folder / RUN).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
        if self._wanted is not False:
            try:
                board = need("torch.utils.tensorboard", "Recorder")
                self._board = board.SummaryWriter(str(self.folder))
            except ImportError:
                if self._wanted:
                    raise

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is None:
            return
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step":
                self._board.add_scalar(name, value, line["step"])
            elif isinstance(value, dict):
                for key, number in value.items():  # pyright: ignore[reportUnknownVariableType]
                    self._board.add_scalar(f"{name}/{key}", number, line["step"])


def _attachment(source: Any) -> Attachment | None:
    """What was attached, however it was given."""
    if source is None or hasattr(source, "counters"):
        return source
    inner = getattr(source, "attachment", None)
    if inner is None and not hasattr(source, "attachment"):
        raise TypeError(f"Recorder({type(source).__name__}): give what cc.attach(...) returned, a DDPState, or None.")
    return inner


def _first(attachment: Attachment | None) -> bool:
    """Whether this rank writes."""
    if attachment is not None:
        return attachment.wire.rank == 0
    import torch.distributed as dist

    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _number(name: str, value: Any) -> float | None:
    try:
        found = float(value.item() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"Recorder.step({name}={value!r}): give a number, or a tensor of one element.") from None
    return found if isfinite(found) else None


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file whose writer may have been killed; what was cut off is taken out of it."""
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return whole.splitlines()
