"""Work in a thread of its own, that no step waits for and that the end of the program does."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread, main_thread
from typing import Any
from weakref import WeakSet

import torch

_started: WeakSet[Thread] = WeakSet()


class Background:
    """``work()`` in a thread; ``result`` waits for what it gives.

    A thread that is in torch while the interpreter goes down aborts the process. So it is no daemon, as it would be by
    itself when a daemon starts it, and when the program is already ending none is started: ``result`` does the work.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work, self._error, self._value = work, None, None
        self._thread: Thread | None = None
        if not ending():
            self._thread = Thread(target=self._run, name="compcomm-background", daemon=False)
            _started.add(self._thread)
            self._thread.start()

    def _run(self) -> None:
        try:
            with torch.no_grad():
                self._value = self._work()
        except Exception as error:
            self._error = error

    def result(self) -> Any:
        """Waits; raises what the work raised."""
        if self._thread is None:
            self._run()
        else:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value


def ending() -> bool:
    """Whether the main thread has ended, so that the interpreter waits for no thread that starts from here on."""
    return not main_thread().is_alive()


def finish() -> None:
    """Waits for what was started just before the program's end."""
    for thread in list(_started):
        thread.join()
