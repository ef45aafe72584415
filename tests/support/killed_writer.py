"""A process that writes to a disk in a local folder until it kills itself; it notes what it does.

    python -m tests.support.killed_writer FOLDER NOTES SEED STEPS

To NOTES it appends a line before each write, ``w BLOCK STAMP``, and one after each flush, ``f``. It
is killed by SIGKILL right before the STEPSth system call that changes the folder.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterable
from itertools import count
from random import Random
from typing import Any
from unittest import mock

from aiovblk.storage.objects import Limits, ObjectStoreDevice

BLOCK, CHUNK, BLOCKS = 4096, 16384, 48
LIMITS = Limits(segment_size=4 * BLOCK, inline_size=3 * BLOCK, extents=8, memory=2 * CHUNK)


def block_of(stamp: int) -> bytes:
    """Return a block that is full of a stamp."""
    return stamp.to_bytes(8, "little") * (BLOCK // 8)


async def write_until_killed(folder: str, notes: int, random: Random) -> None:
    """Write single blocks, ranges and whole chunks, and flush now and then."""
    device = await ObjectStoreDevice.open(f"file://{folder}", "disk", limits=LIMITS)
    while True:
        for _ in range(random.randint(1, 4)):
            count = random.choice([1, 1, 2, 6])
            first = random.randrange(BLOCKS - count)
            stamps = [random.getrandbits(60) for _ in range(count)]
            lines = (f"w {first + number} {stamp}\n" for number, stamp in enumerate(stamps))
            os.write(notes, "".join(lines).encode())
            data = b"".join(map(block_of, stamps))
            await device.write(first * BLOCK, memoryview(data))
        await device.flush()
        os.write(notes, b"f\n")


def kill_at(steps: int, names: Iterable[str] = ("fsync", "link", "replace", "unlink")) -> None:
    """Let this process be killed before a system call, by default one that changes a folder."""
    numbers = count(1)

    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            if next(numbers) == steps:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return step

    for name in names:
        setattr(os, name, killing(getattr(os, name)))


def main(folder: str, notes: str, seed: str, steps: str) -> None:
    """Run until the process is killed."""
    fd = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    kill_at(int(steps))
    with mock.patch("aiovblk.storage.objects.writer._CHECKPOINT_INTERVAL", 5):
        asyncio.run(write_until_killed(folder, fd, Random(int(seed))))


if __name__ == "__main__":
    main(*sys.argv[1:])
