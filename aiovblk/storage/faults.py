"""A device that fails, or is slow, on purpose."""

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
    """What happens to some requests.

    Raises:
        ValueError: there is no such command, or the numbers make no sense.

    """

    command: str | None = None
    """The name of the handler, ``read`` for one; None for all."""
    error: int = 0
    """The error number that the request fails with; 0 for none."""
    delay: float = 0.0
    """Seconds that it waits first."""
    rate: float = 1.0
    """How likely it is, 0 to 1."""
    begin: int = 0
    """Bytes; requests that lie before it are let pass."""
    end: int | None = None
    """Bytes; requests that lie behind it are let pass. A flush lies nowhere: it is let pass if
    there is a ``begin`` or an ``end``."""
    skip: int = 0
    """How many of the others are let pass first."""
    times: int | None = None
    """How many it happens to at most; None for any number."""
    late: bool = False
    """Whether a request fails only when it is done, so that nobody knows what it did."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.command not in (None, *COMMANDS):
            raise ValueError(f"there is no command {self.command!r}: {', '.join(COMMANDS)}")
        if not self.error and not self.delay:
            raise ValueError("a fault needs an error or a delay")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"a rate is from 0 to 1, not {self.rate}")
        check_seconds("delay", self.delay, zero=True)
        for name in ("begin", "end", "skip", "times"):
            check_count(name, getattr(self, name), minimum=0)

    def matches(self, command: str, offset: int, length: int) -> bool:
        """Whether it is about such a request."""
        if self.command not in (None, command):
            return False
        if command == "flush":
            return not self.begin and self.end is None
        return self.begin < offset + length and (self.end is None or offset < self.end)


class _Armed:
    """A fault, and how often it was near."""

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
    """Fails and delays requests, to see how what lies above bears it.

    ::

        faults = Faults(device, Fault("write", error=errno.ENOSPC, skip=9, times=1))
        faults.add(Fault(error=errno.EIO, rate=0.01))
        faults.add(Fault("read", delay=0.5, begin=0, end=1 << 20))

    Durability: that of ``inner``, but for flushes that it fails.

    Args:
        inner: what the others go to.
        faults: what happens; delays of several add up, and of several errors the first counts.
        seed: of chance. The same requests in the same order have the same faults.

    Attributes:
        injected: how many requests a fault has happened to.

    """

    def __init__(self, inner: BlockDevice, *faults: Fault, seed: int = 0) -> None:
        super().__init__(inner)
        self.injected = 0
        self._random = Random(seed)
        self._armed = [_Armed(fault) for fault in faults]

    def add(self, fault: Fault) -> None:
        """From now on this happens too."""
        self._armed.append(_Armed(fault))

    def clear(self) -> None:
        """From now on nothing happens; requests that wait go on waiting."""
        self._armed.clear()

    async def intercept(
        self, command: str, offset: int, length: int, call: Callable[[], Awaitable[T]]
    ) -> T:
        """Let the faults happen to one."""
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
