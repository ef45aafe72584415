"""Copy one export to another by :func:`aiovblk.storage.copy`; see asking.py."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

import aiovblk
from aiovblk.storage import copy

CONNECTIONS = 4  # nbdcopy's default


async def measure(source: str, target: str) -> dict[str, float]:
    """Copy all of it."""
    uris = (f"nbd+unix:///?socket={each}" for each in (source, target))
    opened = [aiovblk.connect(uri, connections=CONNECTIONS) for uri in uris]
    async with opened[0] as original, opened[1] as duplicate:
        begin, cpu = time.perf_counter(), time.process_time()
        await copy(original, duplicate)
        return {
            "requests": original.size >> 20,
            "seconds": time.perf_counter() - begin,
            "client_cpu": time.process_time() - cpu,
        }


def main() -> None:
    """Print what was measured as JSON; a request is a MiB here."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measure(*sys.argv[1:]))))


if __name__ == "__main__":
    main()
