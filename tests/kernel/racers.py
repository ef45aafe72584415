"""Processes that race for free devices: `python -m tests.kernel.racers HOW MODE COUNT [PATH...]`.

They are forks of this one, which has everything imported. Each has a number and a disk with a
pattern of its own, mounts it, by HOW, on any device or one of the paths, and looks whether it is
its own disk that it reads and writes there. Every seventh is killed while it is mounted. Each line
of output is one's number, and ``got`` and an index, ``refused`` and why, or ``failed`` and how.

MODE is ``rolling``, for one to begin as soon as another has ended; or ``rounds``, of which each
begins when all of the one before have got a device, and still have it, or were refused.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Literal, cast

import uvloop

import aiovblk
from aiovblk.storage import MemoryDevice

from .support import pattern, pread, pwrite

AT_ONCE = 16
PAGE = 4096
How = Literal["ioctl", "netlink"]


async def race(number: int, path: str | None, how: How, tell: Callable[[str], None]) -> None:
    """Mount; tell what came of it, and stay as long as that takes."""
    disk = MemoryDevice(1024 * 1024)
    first, second = pattern(PAGE, 2 * number), pattern(PAGE, 2 * number + 1)
    await disk.write(0, memoryview(first))
    try:
        async with aiovblk.mounted(disk, path, attach=how) as mount:
            assert path in (None, mount.path)
            await asyncio.to_thread(tell, f"got {mount.index}")
            assert await asyncio.to_thread(pread, mount.path, 0, PAGE) == first
            await asyncio.to_thread(pwrite, mount.path, PAGE, second)
            assert await disk.read(PAGE, PAGE) == second
            if number % 7 == 3:
                os.kill(os.getpid(), signal.SIGKILL)
    except (aiovblk.DeviceBusyError, aiovblk.NBDUnavailableError) as exc:
        tell(f"refused {type(exc).__name__}: {exc}")


class Races:
    """All of them."""

    def __init__(self, how: How, paths: list[str]) -> None:
        self._how = how
        self._paths = paths
        self._running: set[int] = set()

    def rolling(self, numbers: range) -> None:
        for number in numbers:
            if len(self._running) == AT_ONCE:
                self._reap()
            self._start(number, lambda: None)
        self.end()

    def rounds(self, numbers: range) -> None:
        for begin in numbers[::AT_ONCE]:
            telling, told = os.pipe()
            going, go = os.pipe()

            def wait(go: int = go, told: int = told, going: int = going) -> None:
                os.close(go)
                os.write(told, b".")
                os.read(going, 1)  # until the parent closes it too

            these = range(begin, min(begin + AT_ONCE, numbers.stop))
            for number in these:
                self._start(number, wait)
            for _ in these:
                os.read(telling, 1)
            for each in (telling, told, going, go):
                os.close(each)
        self.end()

    def end(self) -> None:
        while self._running:
            self._reap()

    def _reap(self) -> None:
        process, status = os.wait()
        self._running.remove(process)
        if status not in (0, signal.SIGKILL):
            say(f"{process} failed with status {status}")

    def _start(self, number: int, wait: Callable[[], None]) -> None:
        child = os.fork()
        if child == 0:
            os._exit(self._run(number, wait))
        self._running.add(child)

    def _run(self, number: int, wait: Callable[[], None]) -> int:
        has_told = False

        def tell(what: str) -> None:
            nonlocal has_told
            say(f"{number} {what}")
            if not has_told:
                has_told = True
                wait()

        path = self._paths[number % len(self._paths)] if self._paths else None
        new_loop = uvloop.new_event_loop if number % 2 else asyncio.SelectorEventLoop
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(race(number, path, self._how, tell))
        except BaseException as exc:
            tell(f"failed with {exc!r}")
            return 1
        return 0


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # at once, so that lines of several do not mix


def main() -> None:
    how, mode, count, *paths = sys.argv[1:]
    races = Races(cast(How, how), paths)
    run = races.rounds if mode == "rounds" else races.rolling
    run(range(int(count)))


if __name__ == "__main__":
    main()
