"""Ask a server as an application does that uses :func:`aiovblk.connect`; see asking.py."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from random import Random

import uvloop

import aiovblk


async def ask(socket: str, op: str, length: int, depth: int, requests: int) -> dict[str, float]:
    """Keep ``depth`` requests in flight, and measure after the first part of them."""
    async with aiovblk.connect(f"nbd+unix:///?socket={socket}", connections=1) as device:
        random = Random(1)
        blocks = device.size // length
        payload = bytes(length)

        async def work(count: int) -> None:
            for _ in range(count):
                offset = random.randrange(blocks) * length
                if op == "read":
                    await device.read(offset, length)
                else:
                    await device.write(offset, memoryview(payload))

        async def run(count: int) -> None:
            await asyncio.gather(*(work(count // depth) for _ in range(depth)))

        await run(requests // 10)
        begin, cpu = time.perf_counter(), time.process_time()
        await run(requests)
        return {
            "requests": requests // depth * depth,
            "seconds": time.perf_counter() - begin,
            "client_cpu": time.process_time() - cpu,
        }


def main() -> None:
    """Print what was measured as JSON."""
    socket, op, *numbers = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(ask(socket, op, *map(int, numbers)))))


if __name__ == "__main__":
    main()
