"""A disk in memory: `sudo .venv/bin/python examples/ramdisk.py /dev/nbd0`.

Then make a file system on it. Ctrl-C unmounts the disk if no file system is mounted on it any more;
dirty data is flushed before the `unmount` handler runs.
"""

import asyncio
import contextlib
import sys

import aiovblk


class Ramdisk(aiovblk.BlockDevice):
    """64 MiB, all zeroes at first."""

    block_size = 4096
    blocks = 16384

    def __init__(self) -> None:
        self.memory = bytearray(self.size)

    async def read(self, offset: int, length: int) -> memoryview:
        """Return a view; the library copies it."""
        return memoryview(self.memory)[offset : offset + length]

    async def write(self, offset: int, data: memoryview) -> None:
        """Copy `data`, which is valid during this call only."""
        self.memory[offset : offset + len(data)] = data

    async def flush(self) -> None:
        """Do nothing: memory needs no flush. Because it is defined, the kernel sends flushes."""

    async def trim(self, offset: int, length: int) -> None:
        """Zero the contents in bounded pieces, since one request may cover gigabytes."""
        await self.write_zeroes(offset, length, may_trim=True)

    async def unmount(self) -> None:
        """Print a message; runs however the mount ends."""
        print("unmounted", flush=True)


async def main(path: str | None) -> None:
    """Serve until Ctrl-C, SIGTERM or `aiovblk unmount`."""
    async with aiovblk.mounted(Ramdisk(), path) as mount:
        print(f"mounted {mount.path}", flush=True)
        await mount.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
