"""Work that is done again and again in a thread of its own, with a pause before each time."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Repeating:
    """Does a piece of work after every pause, from :meth:`start` until :meth:`stop`.

    Args:
        work: what to do; it may not raise.
        wait_seconds: the pause; with 0 or less it is never done.
        name: of the thread.
    """

    def __init__(self, work: Callable[[], None], wait_seconds: float, name: str) -> None:
        self._work = work
        self._wait_seconds = wait_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin, a pause from now."""
        if self._wait_seconds > 0:
            self._thread.start()

    def stop(self) -> None:
        """Stop; returns when the thread is gone."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._wait_seconds):
            self._work()
