"""A device inside an application that does other work on the same event loop.

The application is a tiny service: it answers each line on a TCP port with the number of reads and
writes of its disk. Disk and service share one loop and end together: at Ctrl-C, at SIGTERM, at the
line `quit`, or when the disk is unmounted. Run it as root:
`sudo .venv/bin/python examples/embedded_service.py [/dev/nbdN]`
"""

import asyncio
import contextlib
import signal
import sys

import aiovblk
from aiovblk.storage import MemoryDevice


class Store(MemoryDevice):
    """The application's disk; a real one would await a database or another machine here."""

    async def flush(self) -> None:
        """Yield to the event loop once, as a remote call would."""
        await asyncio.sleep(0)

    async def unmount(self) -> None:
        """Clean up; awaited before the service's own clean-up continues."""
        print("disk unmounted", flush=True)


class Service:
    """The other work of the application."""

    def __init__(self, disk: aiovblk.Mount) -> None:
        self.disk = disk
        self.quit = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        while line := await reader.readline():
            if line == b"quit\n":
                self.quit.set()
                break
            stats = self.disk.stats
            writer.write(b"%d reads, %d writes\n" % (stats.reads, stats.writes))
            await writer.drain()
        writer.close()


async def main(path: str | None) -> None:
    """Run disk and service until one of them ends."""
    async with aiovblk.mounted(Store(64 * 1024 * 1024), path) as disk:
        service = Service(disk)
        # Without it, SIGTERM ends the process as kill -9 does: the disk is cut off, not unmounted.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, service.quit.set)
        server = await asyncio.start_server(service.answer, "127.0.0.1", 0)
        print(f"disk {disk.path}, port {server.sockets[0].getsockname()[1]}", flush=True)
        ends = [asyncio.create_task(service.quit.wait()), asyncio.create_task(disk.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server.close()
            for end in ends:
                end.cancel()
    print("service ended", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
