"""Recorder: what a training run did, step by step, in a folder that outlives it."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from ..engine.statistics import Counters
from . import journal, run_info
from . import tensorboard as board
from .totals import NAMES, Sums

if TYPE_CHECKING:
    from ..engine.attachment import Attachment

_OWN = frozenset(("step", "seconds", "ratio", "reducer", "choices", "errors", *NAMES))


class Recorder:
    """Writes a line of JSON per step, and TensorBoard scalars; ``python -m compcomm report FOLDER`` draws them.

    ::

        with cc.report.Recorder("runs/topk", hook) as recorder:
            for batch in batches:
                ...
                recorder.step(loss=loss)

    Call ``step`` on every rank or on rank 0 alone: rank 0 of the job writes, and nothing is sent. A line holds "step";
    sums since the start: "seconds", "bytes_sent" of this rank, and seconds in kernels, on the wire, exposed and in
    reviews; "ratio", the bytes of a dense all-reduce over those sent since the last line; the given scalars; and where
    they are known "choices" of a controller (when they changed) and "errors", |x - C(x)|/|x| by parameter. Every line
    is flushed; a run that is started again in the same folder goes on there: steps and sums where its checkpoint was,
    what the attempt before did beyond is left out by readers.

    A loss on a GPU is waited for, as ``.item()`` does: use ``every``. Errors decode what the step sent, some passes
    over the gradient.

    Args:
        folder: made where it is missing.
        attachment: what ``attach`` returned, a ``DDPState``, or an optimizer of ``compcomm.optim``; None: the given
            scalars alone.
        tensorboard: True: also TensorBoard's own files in the folder; None: if the package is there; False: not.
        every: writes every that many steps.
        errors_every: adds errors by parameter to a line after that many steps; 0: never.

    Raises:
        ValueError: a number that is none.
        TypeError: ``attachment`` is something else.
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
        if tensorboard:
            board.check()
        self.folder, self.every, self.errors_every = Path(folder), every, errors_every
        self._source, self._wanted = attachment, tensorboard
        self._count, self._erred, self._closed = 0, 0, False
        self._begin = perf_counter()
        self._before = 0.0  # seconds of the attempts before this one
        self._sums = Sums()
        now = _attachment(attachment)
        if now is not None:
            self._sums.begin(now, now.counters())
        self._dense = 0  # bytes per step of a dense all-reduce
        self._reducer: Any = None
        self._reviewed: float | None = None
        self._chosen: dict[str, float] = {}
        self._file: journal.Journal | None = None
        self._board: board.Board | None = None

    def step(self, loss: Any = None, *, at: int | None = None, **scalars: Any) -> None:
        """Takes the end of a step in, after the optimizer's.

        Args:
            loss, scalars: numbers or tensors of one element. None is left out; what is not finite becomes null.
            at: the step's number. By default the attachment's (averaged backward passes) or optimizer's; without one,
                this recorder's own count, which begins at 1.

        Raises:
            TypeError, ValueError: something else, or a scalar that has the name of something that a line holds.
            RuntimeError: the recorder was closed.
        """
        if self._closed:
            raise RuntimeError(f"Recorder({str(self.folder)!r}).step: it was closed. A new one in this folder goes on.")
        self._count += 1
        if self._count % self.every or (dist.is_available() and dist.is_initialized() and dist.get_rank()):
            return
        numbers = {n: _number(n, v) for n, v in {"loss": loss, **scalars}.items() if v is not None}
        if not _OWN.isdisjoint(numbers):
            name = min(_OWN & numbers.keys())
            hint = "The step's number is at=." if name == "step" else "Give it another name."
            raise ValueError(f"Recorder.step({name}=...): a line holds a {name!r} of the recorder's own. {hint}")
        attachment = _attachment(self._source)
        counters = None if attachment is None else attachment.counters()
        step = self._number_of(at, counters)
        if self._file is None:
            self._open(attachment, step)
        line = {"step": step, "seconds": self._before + perf_counter() - self._begin, **numbers}
        shown = {n: v for n, v in numbers.items() if v is not None}
        if attachment is not None and counters is not None:
            self._ask(attachment, counters, line, shown)
        assert self._file is not None
        self._file.write(line)
        if self._board is not None:
            self._board.show(shown, step)

    def close(self) -> None:
        """Ends the files."""
        self._closed = True
        for file in (self._file, self._board):
            if file is not None:
                file.close()
        self._file = self._board = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _number_of(self, at: int | None, counters: Counters | None) -> int:
        if at is not None:
            if isinstance(at, bool) or not isinstance(at, int) or at < 0:
                raise ValueError(f"Recorder.step(at={at!r}): a step's number, an integer, 0 or more.")
            return at
        steps = getattr(self._source, "steps", None)  # an optimizer's, whose attachments come and go
        if isinstance(steps, int):
            return steps
        return self._count if counters is None else counters.step

    def _ask(self, attachment: Attachment, counters: Counters, line: dict[str, Any], shown: dict[str, float]) -> None:
        part = self._sums.take(attachment, counters)
        line.update(self._sums.totals)
        shown["bytes_sent"] = self._sums.totals["bytes_sent"]
        shown |= {f"per step/{n}": getattr(part, n) / max(1, part.steps) for n in NAMES}
        if part.bytes_sent and part.steps > 0:
            line["ratio"] = shown["ratio"] = self._dense * part.steps / part.bytes_sent
        if attachment.reducer is not self._reducer:
            self._reducer, self._reviewed = attachment.reducer, None
            line["reducer"] = repr(attachment.reducer)
        if not counters.controlled:
            self._show(attachment.scheduled(), line, shown)
        # Asking waits for a review that is under way: only after one has ended is there something new.
        if counters.controlled and counters.review_seconds != self._reviewed:
            self._reviewed = counters.review_seconds
            self._show(attachment.choices(), line, shown)
        if self.errors_every and self._count - self._erred >= self.errors_every:
            self._erred = self._count
            errors = {n: e for n, e in attachment.errors().items() if e is not None}
            if errors:
                line["errors"] = {n: e if isfinite(e) else None for n, e in errors.items()}
                shown |= {f"errors/{n}": e for n, e in errors.items()}

    def _show(self, choices: dict[str, float], line: dict[str, Any], shown: dict[str, float]) -> None:
        if choices != self._chosen:
            line["choices"] = self._chosen = choices
            shown |= {f"choices/{n}": v for n, v in choices.items()}

    def _open(self, attachment: Attachment | None, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / journal.STEPS
        if path.exists():
            before = next((e for e in reversed(journal.read(path)) if e["step"] < step), {})
            self._before = before.get("seconds", 0.0)
            self._sums.totals.update({n: before[n] for n in NAMES if n in before})
        run_info.write(self.folder, attachment)
        self._file = journal.Journal(path)
        if attachment is not None:
            self._dense = attachment.dense_bytes
        if self._wanted is not False:
            try:
                self._board = board.Board(self.folder, step)
            except ImportError:
                if self._wanted:
                    raise


def _attachment(source: Any) -> Attachment | None:
    """What was attached, however it was given."""
    if source is None or hasattr(source, "counters"):
        return source
    if not hasattr(source, "attachment"):
        raise TypeError(
            f"Recorder({type(source).__name__}): give what cc.attach(...) returned, a DDPState, an optimizer of "
            f"compcomm.optim, or None."
        )
    return source.attachment


def _number(name: str, value: Any) -> float | None:
    try:
        found = float(value.item() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"Recorder.step({name}={value!r}): give a number, or a tensor of one element.") from None
    return found if isfinite(found) else None
