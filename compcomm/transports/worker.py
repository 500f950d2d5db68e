"""A thread that does one task after the other, and is gone before torch takes its process groups down."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

from ..core.background import ending, finish

Task = Callable[[], None]


class Worker:
    """``do`` queues a task, which must not raise. ``close`` ends the thread after the tasks that were queued; so does
    the end of the program, or of ``owner``, which the tasks should therefore not hold while they are idle."""

    def __init__(self, owner: object, name: str) -> None:
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=(self._queue,), name=name, daemon=True)
        self._thread.start()
        self.close = weakref.finalize(owner, _stop, self._queue, self._thread)

    def do(self, task: Task) -> None:
        """Runs a task after those before it."""
        self._queue.put(task)


def _serve(queue: SimpleQueue[Task | None]) -> None:
    while (task := queue.get()) is not None:
        task()
        del task


def _stop(queue: SimpleQueue[Task | None], thread: threading.Thread) -> None:
    queue.put(None)
    if thread is not threading.current_thread():
        thread.join(timeout=5)  # a thread that waits for a dead peer is left behind: it is a daemon
    if ending():
        finish()
