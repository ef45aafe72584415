"""Inject faults: make requests fail, or delay them, for tests."""

from __future__ import annotations

import os
from asyncio import sleep
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from ..arguments import check_count, check_seconds
from ..device import BlockDevice
from .intercept import Intercept
from .metered import COMMANDS

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault to inject: which requests it hits, and what happens to them.

    Raises:
        ValueError: the command does not exist, or a number is out of range.

    """

    command: str | None = None
    """The name of the handler, for instance ``read``; None for all."""
    error: int = 0
    """The error number (errno) that the request fails with; 0 for none."""
    delay: float = 0.0
    """Seconds that the request waits first."""
    rate: float = 1.0
    """The probability that a matching request is hit, 0 to 1."""
    begin: int = 0
    """Offset in bytes; requests that lie before it pass."""
    end: int | None = None
    """Offset in bytes; requests that lie behind it pass. A flush has no offset: it passes if there
    is a ``begin`` or an ``end``."""
    skip: int = 0
    """The number of matching requests that pass first."""
    times: int | None = None
    """The number of requests to hit at most; None for no limit."""
    late: bool = False
    """Whether to fail the request after ``inner`` has done it: it has failed, but took effect."""

    def __post_init__(self) -> None:
        """Validate the arguments."""
        if self.command not in (None, *COMMANDS):
            raise ValueError(f"no command {self.command!r}: use one of {', '.join(COMMANDS)}")
        if not self.error and not self.delay:
            raise ValueError("a fault needs an error or a delay")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate must be from 0 to 1, not {self.rate}")
        check_seconds("delay", self.delay, zero=True)
        for name in ("begin", "end", "skip", "times"):
            check_count(name, getattr(self, name), minimum=0)

    def matches(self, command: str, offset: int, length: int) -> bool:
        """Return whether the fault is about such a request."""
        if self.command not in (None, command):
            return False
        if command == "flush":
            return not self.begin and self.end is None
        return self.begin < offset + length and (self.end is None or offset < self.end)


class _Armed:
    """A fault, with how many requests it still lets pass and still hits."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._to_skip = fault.skip
        self._left = fault.times

    def matches(self, random: Random, command: str, offset: int, length: int) -> bool:
        if self._left == 0 or not self.fault.matches(command, offset, length):
            return False
        if self._to_skip:
            self._to_skip -= 1
            return False
        if random.random() >= self.fault.rate:
            return False
        if self._left is not None:
            self._left -= 1
        return True


class Faults(Intercept):
    """Fails and delays requests, to test how the layers and programs above handle errors.

    ::

        faults = Faults(device, Fault("write", error=errno.ENOSPC, skip=9, times=1))
        faults.add(Fault(error=errno.EIO, rate=0.01))
        faults.add(Fault("read", delay=0.5, begin=0, end=1 << 20))

    Durability: that of ``inner``, except for flushes that it fails.

    Args:
        inner: the device below, which the other requests go to.
        faults: the faults to inject. If several hit a request, their delays add up and the first
            error counts.
        seed: of the random numbers. The same requests in the same order get the same faults.

    Attributes:
        injected: the number of requests that were hit.

    """

    passes_bitmaps = True

    def __init__(self, inner: BlockDevice, *faults: Fault, seed: int = 0) -> None:
        super().__init__(inner)
        self.injected = 0
        self._random = Random(seed)
        self._armed = [_Armed(fault) for fault in faults]

    def add(self, fault: Fault) -> None:
        """Inject this fault too, from now on."""
        self._armed.append(_Armed(fault))

    def clear(self) -> None:
        """Inject no faults from now on. Requests that are being delayed stay delayed."""
        self._armed.clear()

    async def intercept(
        self, command: str, offset: int, length: int, call: Callable[[], Awaitable[T]]
    ) -> T:
        """Run a request, with the faults that hit it."""
        faults = [
            armed.fault
            for armed in self._armed
            if armed.matches(self._random, command, offset, length)
        ]
        if not faults:
            return await call()
        self.injected += 1
        if delay := sum(fault.delay for fault in faults):
            await sleep(delay)
        fault = next((fault for fault in faults if fault.error), None)
        if fault is None:
            return await call()
        if fault.late:
            await call()
        raise OSError(fault.error, f"{os.strerror(fault.error)} (on purpose)")
