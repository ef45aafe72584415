"""Clocks that a test moves."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest

from aiovblk.aio.ratelimit import Clock


class ManualTimer:
    """A call at a time of a :class:`ManualClock`."""

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class ManualClock(Clock):
    """Time stands still, unless a test advances it; timers go off on the way."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[ManualTimer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> ManualTimer:
        assert delay > 0, "that would be busy waiting"
        timer = ManualTimer(self.now + delay, callback)
        self._timers.append(timer)
        return timer

    @property
    def timers(self) -> list[ManualTimer]:
        """Those that are set, the next one first."""
        self._timers = [timer for timer in self._timers if not timer.is_cancelled]
        return sorted(self._timers, key=lambda timer: timer.when)

    def advance(self, seconds: float) -> None:
        """Let time pass, and timers go off when they are due."""
        end = self.now + seconds
        while self.timers and (timer := self.timers[0]).when <= end:
            self._timers.remove(timer)
            self.now = timer.when
            timer.callback()
        self.now = end


def patch_time(
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    *,
    sleep: Callable[[float], object],
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Give one module a clock of its own: others, in other threads, go on by that of the system."""
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep, monotonic=monotonic))
