"""Timers of the running loop that go off when a test says so, and not by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

LATER = 3600
"""Seconds: a limit that no test meets by itself, given to what is to be limited."""


class Timers:
    """Those that are set for :data:`LATER` from now on; all others go by the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop = asyncio.get_running_loop()
        self._monkeypatch = monkeypatch
        self._set: list[tuple[asyncio.TimerHandle, Callable[[], object]]] = []
        call_later, call_at = self._loop.call_later, self._loop.call_at

        def later(delay: float, callback: Any, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            return self._note(delay, call_later(delay, callback, *args, **kwargs), callback, args)

        def at(when: float, callback: Any, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
            delay = when - self._loop.time()
            return self._note(delay, call_at(when, callback, *args, **kwargs), callback, args)

        monkeypatch.setattr(self._loop, "call_later", later)
        monkeypatch.setattr(self._loop, "call_at", at)

    def _note(
        self, delay: float, handle: asyncio.TimerHandle, callback: Any, args: tuple[Any, ...]
    ) -> asyncio.TimerHandle:
        # Either of the two calls may be made by way of the other.
        if delay > LATER / 4 and all(handle is not each for each, _ in self._set):
            self._set.append((handle, lambda: callback(*args)))
        return handle

    def count(self) -> int:
        """How many are set."""
        self._set = [each for each in self._set if not each[0].cancelled()]
        return len(self._set)

    def go_off(self, after: float = LATER) -> None:
        """Have those that are set go off, as they would after so many seconds."""
        assert self.count(), "no timer is set"
        gone, self._set = self._set, []
        now = self._loop.time()
        with self._monkeypatch.context() as patched:
            patched.setattr(self._loop, "time", lambda: now + after)
            for handle, call in gone:
                handle.cancel()
                call()


@pytest.fixture
async def timers(monkeypatch: pytest.MonkeyPatch) -> Timers:
    return Timers(monkeypatch)
