"""A read-only disk of the bytes DE AD BE EF: `sudo .venv/bin/python examples/deadbeef.py`.

Then, in another terminal: `sudo xxd /dev/nbd0 | head -n 2`. Ctrl-C unmounts. An argument names
another device than /dev/nbd0.
"""

import asyncio
import contextlib
import logging
import sys

import aiovblk


class Deadbeef(aiovblk.BlockDevice):
    """Read-only, since it does not override `write`."""

    block_size = 1024
    blocks = 4096  # 4 MiB

    async def read(self, offset: int, length: int) -> bytes:
        """Repeat the pattern, starting at `offset` in it."""
        pattern = b"\xde\xad\xbe\xef" * (length // 4 + 2)
        return pattern[offset % 4 : offset % 4 + length]


class WritableDeadbeef(Deadbeef):
    """Gets writes, and fails them: what a device without `write` does if it is not read-only."""

    read_only = False


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # logs when it is mounted
    path = sys.argv[1] if len(sys.argv) > 1 else "/dev/nbd0"
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(aiovblk.mount(Deadbeef(), path))
