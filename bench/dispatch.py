"""CPU time of the dispatcher per request, over a socket pair: no kernel driver, no network.

    python bench/dispatch.py [--loop uvloop|asyncio]

A forked client keeps a fixed number of requests in flight; the figure is the server process's own
CPU time divided by the number of requests, which depends far less on a busy machine than requests
per second do. Compare two runs made one after the other, and quote their ratio.
"""

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))

from aiovblk import BlockDevice
from aiovblk.dispatch import Dispatcher, Stats
from aiovblk.protocol import Command, Request, serialize_request
from aiovblk.storage import MemoryDevice

SIZE = 64 * 1024 * 1024
CASES: list[tuple[str, int, int, int, Command]] = [
    # name, requests, in flight, bytes, command
    ("4k read QD1", 20_000, 1, 4096, Command.READ),
    ("4k read QD64", 100_000, 64, 4096, Command.READ),
    ("4k write QD64", 100_000, 64, 4096, Command.WRITE),
    ("256k read QD8", 8_000, 8, 262_144, Command.READ),
    ("256k write QD8", 8_000, 8, 262_144, Command.WRITE),
]


def client(sock: socket.socket, count: int, depth: int, length: int, command: Command) -> None:
    """Send `count` requests in bursts of `depth`, reading the replies of one before the next."""
    payload = os.urandom(length) if command == Command.WRITE else b""
    reply = bytearray(depth * (16 + (length if command == Command.READ else 0)))
    for first in range(0, count, depth):
        sock.sendall(
            b"".join(
                serialize_request(Request(0, command, cookie, cookie * length % SIZE, length))
                + payload
                for cookie in range(first, first + depth)
            )
        )
        missing = memoryview(reply)
        while missing:
            missing = missing[sock.recv_into(missing) :]


def plain(device: BlockDevice) -> Dispatcher:
    """A dispatcher whose events have no listener."""
    return Dispatcher(device, Stats(), on_disconnect=lambda: None)


async def microseconds(
    count: int,
    depth: int,
    length: int,
    command: Command,
    *,
    make: Callable[[BlockDevice], Dispatcher] = plain,
) -> float:
    """The server's CPU time per request."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 1024 * 1024)
    device = MemoryDevice(SIZE)
    for offset in range(0, SIZE, 4096):  # no page fault is to be measured
        await device.write(offset, memoryview(b"\1" * 4096))
    if (process := os.fork()) == 0:
        ours.close()
        client(theirs, count, depth, length, command)
        os._exit(0)
    theirs.close()
    dispatcher = make(device)
    await dispatcher.connect(ours)
    begin = time.process_time()
    await dispatcher.run()
    used = time.process_time() - begin
    await dispatcher.close()
    await asyncio.to_thread(os.waitpid, process, 0)
    return used / count * 1e6


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    factory = uvloop.new_event_loop if parser.parse_args().loop == "uvloop" else None
    for name, count, depth, length, command in CASES:
        with asyncio.Runner(loop_factory=factory) as runner:
            used = runner.run(microseconds(count, depth, length, command))
        print(f"{name:16} {used:8.1f} us", flush=True)


if __name__ == "__main__":
    main()
