"""What the layer Tracked adds to random 4k writes: CPU time and flushes.

    python -m bench.tracked [--rounds 5] [--folder DIRECTORY]

A forked client has 32 writes of 4 KiB in flight, at random places, and a flush after each 64. The
server's own CPU time per write is measured without, with, and without the layer, directly one after
the other; what is compared is the second with the mean of its neighbours, and the median of all.
Each write of a round is the first to its block since the last point, which is the dearest case, or
none is. Flushes are the calls of fdatasync() in that time, of the disk's file and of the bitmaps'
together.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import tempfile
import time
from pathlib import Path
from random import Random
from statistics import median
from typing import Any
from unittest import mock

import uvloop

from aiovblk import BlockDevice
from aiovblk.protocol import Command, Request, serialize_request
from aiovblk.storage import FileDevice, MemoryDevice, Tracked

from .dispatch import plain

SIZE = 1 << 30
BLOCK = 4096
WRITES = 32_768
DEPTH = 32
FLUSH_EVERY = 64


def write_at_random(sock: socket.socket, seed: int) -> None:
    """Write to so many different blocks, in random order."""
    blocks = Random(seed).sample(range(SIZE // BLOCK), WRITES)
    payload = os.urandom(BLOCK)
    for first in range(0, WRITES, DEPTH):
        requests = [
            serialize_request(Request(0, Command.WRITE, block, block * BLOCK, BLOCK)) + payload
            for block in blocks[first : first + DEPTH]
        ]
        exchange(sock, requests)
        if (first + DEPTH) % FLUSH_EVERY == 0:
            exchange(sock, [serialize_request(Request(0, Command.FLUSH, 0, 0, 0))])


def exchange(sock: socket.socket, requests: list[bytes]) -> None:
    """Send requests, and wait for their replies."""
    sock.sendall(b"".join(requests))
    missing = 16 * len(requests)
    while missing:
        missing -= len(sock.recv(missing))


async def measure(device: BlockDevice, seed: int) -> tuple[float, int]:
    """Return microseconds of CPU time for a write, and the calls of fdatasync()."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 1024 * 1024)
    if (process := os.fork()) == 0:
        ours.close()
        write_at_random(theirs, seed)
        os._exit(0)
    theirs.close()
    dispatcher = plain(device)
    await dispatcher.connect(ours)
    with mock.patch("os.fdatasync", wraps=os.fdatasync) as flushes:
        begin = time.process_time()
        await dispatcher.run()
        used = time.process_time() - begin
    await dispatcher.close()
    await asyncio.to_thread(os.waitpid, process, 0)
    return used / WRITES * 1e6, flushes.call_count


def disk(kind: str, folder: str) -> BlockDevice:
    """Make a disk whose blocks are allocated."""
    if kind == "memory":
        return MemoryDevice(SIZE)
    path = Path(folder, "disk")
    if not path.exists():
        with path.open("wb") as file:
            for _ in range(SIZE // (1 << 20)):
                file.write(os.urandom(1 << 20))
    return FileDevice(path, block_size=BLOCK)


async def compare(kind: str, *, first: bool, rounds: int, folder: str) -> dict[str, Any]:
    """Return the medians of all rounds."""
    found = []
    device = disk(kind, folder)
    await measure(device, 0)  # which warms it
    for number in range(rounds):
        before = await measure(device, number)
        path = Path(folder, f"bitmaps {kind} {first} {number}")
        tracked = Tracked(device, path)
        await tracked.add("before")
        await tracked.write(0, memoryview(bytes(BLOCK)))  # which opens the regions
        if not first:
            await measure(tracked, number)
        within = await measure(tracked, number)
        with mock.patch.object(device, "unmount", mock.AsyncMock()):  # it is used again
            await tracked.unmount()
        after = await measure(device, number)
        without = (before[0] + after[0]) / 2, max(before[1], after[1])
        found.append((without, within))
    await device.unmount()
    return {
        "without": median(before for (before, _), _ in found),
        "with": median(after for _, (after, _) in found),
        "ratio": median(after / before for (before, _), (after, _) in found),
        "flushes without": max(count for (_, count), _ in found),
        "flushes with": max(count for _, (_, count) in found),
    }


def main() -> None:
    """Measure, and print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="for the disk's file and the bitmaps (default: /tmp)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for kind in ("file", "memory"):
            for first in (True, False):
                running = compare(kind, first=first, rounds=arguments.rounds, folder=folder)
                found = uvloop.run(running)
                print(
                    f"{kind:<7} {'first writes' if first else 'rewrites':<13}"
                    f" {found['without']:6.1f} us without, {found['with']:6.1f} us with:"
                    f" {found['ratio']:.3f};"
                    f" {found['flushes without']} and {found['flushes with']} flushes",
                    flush=True,
                )


if __name__ == "__main__":
    main()
