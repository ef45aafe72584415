"""A process that writes through a Tracked layer until it kills itself; it notes what it does.

    python -m tests.support.killed_tracker FOLDER SEED STEPS

To FOLDER/notes it appends a line before each write, the number of the block. It is killed by
SIGKILL right before the STEPSth write to a file, of the disk or of the bitmaps.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from aiovblk.storage import FileDevice, Tracked

BLOCK, BLOCKS = 4096, 4096


def kill_at(steps: int) -> None:
    """Let this process be killed before it writes to a file for the last time."""
    numbers, pwrite = count(1), os.pwrite

    def killing(*args: Any) -> int:
        if next(numbers) == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return pwrite(*args)

    os.pwrite = killing


async def write_until_killed(folder: Path, random: Random) -> None:
    """Write to single blocks, four at a time, and flush now and then."""
    tracked = Tracked(FileDevice(folder / "disk"), folder / "bitmaps", granularity=BLOCK)
    notes = os.open(folder / "notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def write() -> None:
        block = random.randrange(BLOCKS)
        os.write(notes, f"{block}\n".encode())
        await tracked.write(block * BLOCK, memoryview(random.randbytes(BLOCK)))

    while True:
        await asyncio.gather(*(write() for _ in range(4)))
        if random.random() < 0.1:
            await tracked.flush()


if __name__ == "__main__":
    kill_at(int(sys.argv[3]))
    asyncio.run(write_until_killed(Path(sys.argv[1]), Random(int(sys.argv[2]))))
