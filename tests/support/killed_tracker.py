"""A process that writes through a Tracked layer until it kills itself; it notes what it does.

    python -m tests.support.killed_tracker FOLDER SEED STEPS

To FOLDER/notes it appends a line before each write, trim and zeroes: the number of the block. At
some time it adds a point, LIVE, and when that is there a line with its name. It is killed by
SIGKILL right before the STEPSth time that it writes to a file, of the disk or of the bitmaps, makes
a hole in one, or makes one durable.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from aiovblk.storage import FileDevice, Tracked
from aiovblk.storage.openfile import OpenFile

BLOCK, BLOCKS = 4096, 4096


LIVE = "live"
"""The name of the point that it adds."""


def kill_at(steps: int) -> None:
    """Let this process be killed before it changes a file, or makes one durable, once more."""
    numbers = count(1)

    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any) -> Any:
            if next(numbers) == steps:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args)

        return step

    os.pwrite = killing(os.pwrite)
    os.fdatasync = killing(os.fdatasync)
    for name in ("write_few", "allocate"):  # these do not call functions of `os`
        setattr(OpenFile, name, killing(getattr(OpenFile, name)))


async def write_until_killed(folder: Path, random: Random) -> None:
    """Change single blocks, four at a time, and flush now and then; add the point among that."""
    tracked = Tracked(FileDevice(folder / "disk"), folder / "bitmaps", granularity=BLOCK)
    notes = os.open(folder / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def change() -> None:
        block, kind = random.randrange(BLOCKS), random.random()
        os.write(notes, f"{block}\n".encode())
        if kind < 0.6:
            await tracked.write(block * BLOCK, memoryview(random.randbytes(BLOCK)))
        elif kind < 0.8:
            await tracked.write_zeroes(block * BLOCK, BLOCK, may_trim=kind < 0.7)
        else:
            await tracked.trim(block * BLOCK, BLOCK)

    async def add() -> None:
        await tracked.add(LIVE)
        os.write(notes, f"{LIVE}\n".encode())

    begins = random.randrange(10)
    for number in count():
        changes = [change() for _ in range(4)]
        await asyncio.gather(*changes, *([add()] if number == begins else []))
        if random.random() < 0.1:
            await tracked.flush()


if __name__ == "__main__":
    kill_at(int(sys.argv[3]))
    asyncio.run(write_until_killed(Path(sys.argv[1]), Random(int(sys.argv[2]))))
