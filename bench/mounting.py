"""How long a mount takes in an interpreter that is ready: ``python -m bench.mounting``, as root.

Prints seconds, as JSON: from the call of :func:`aiovblk.mounted` until a first block was read.
"""

from __future__ import annotations

import asyncio
import json
import time

import uvloop

from aiovblk import mounted
from aiovblk.storage import MemoryDevice

from .attach import read_first_block
from .cases import SIZE

MOUNTS = 5


async def main() -> None:
    """Mount and unmount, one after the other."""
    print(json.dumps([await _seconds() for _ in range(MOUNTS)]))


async def _seconds() -> float:
    device = MemoryDevice(SIZE)
    begin = time.perf_counter()
    async with mounted(device) as mount:
        await asyncio.to_thread(read_first_block, mount.path)
        return time.perf_counter() - begin


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
