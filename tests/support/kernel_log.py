"""The log of a fake kernel: what has happened, in order."""

from __future__ import annotations

import threading
from concurrent.futures import Future


class KernelLog:
    """A list of what has happened, which any thread may add to and wait for.

    Attributes:
        log: all of it.

    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self._awaited: dict[str, Future[None]] = {}
        self._guard = threading.RLock()

    def note(self, what: str) -> None:
        """Add to the log."""
        with self._guard:
            self.log.append(what)
            if (awaited := self._awaited.pop(what, None)) is not None:
                awaited.set_result(None)

    def when(self, what: str) -> Future[None]:
        """Return a future that is done as soon as something is in the log."""
        with self._guard:
            awaited = self._awaited.setdefault(what, Future())
            if what in self.log:
                self._awaited.pop(what).set_result(None)
            return awaited
