"""Serve a regular file or a block device as a disk, with a thread pool for its system calls."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, Self, TypeVar

import anyio

from ..arguments import check_block_size, check_count
from ..device import BlockDevice, Extent
from .fsync import create_file
from .openfile import PUNCH_HOLE, ZERO_RANGE, OpenFile

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 16  # per device; more requests in flight rarely make a disk faster

MAX_REQUEST = 2**63 - 1
"""Bytes of the largest file that Linux can address (off_t)."""


class FileDevice(BlockDevice):
    """A disk that is kept in a regular file or on a block device.

    Its size is that of the file when it is opened. If the file is truncated afterwards, reads of
    the missing part fail with EIO.

    The file is locked (``flock``) until :meth:`unmount`: exclusively, or shared with other readers
    if it is read-only. A block device that is opened for writing is claimed (``O_EXCL``), which
    fails while it, or a partition of it, is mounted.

    Concurrency: up to 16 requests run at a time, in a thread pool of the device's own; others wait.

    Durability: writes go to the page cache, which :meth:`flush` makes durable. Once a flush has
    failed, the kernel may have dropped what it could not write, so every later flush fails too.

    Cancellation: a system call in a thread cannot be interrupted. Its handler ends at once, but
    the next change, and :meth:`unmount`, wait until the thread is done. A call that hangs for good
    keeps the interpreter from exiting.

    Args:
        path: of the file. It must exist; see :meth:`create`.
        block_size: bytes, a power of two: the sector size that the file's contents are made for.
            By default 512, as for nearly every disk image, or that of the block device; less if
            the file's size is no multiple of it: such a disk can be served over the network, but
            not mounted. ``truncate -s %512 PATH`` pads such a file with zeroes.
        read_only: whether to open it for reading only.
        multi_conn: whether several processes serve the file together, as the workers of one mount
            do. They share the lock, against all other processes. Not for a block device.

    Raises:
        BlockingIOError: another process has locked the file.
        OSError: the file cannot be opened, or, with EBUSY, is a block device in use.
        TypeError, ValueError: the file is empty, its size is no multiple of ``block_size``, which
            must be a power of two, or it is neither a regular file nor a block device.

    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        block_size: int | None = None,
        read_only: bool = False,
        multi_conn: bool = False,
    ) -> None:
        check_block_size(block_size)
        self.path = os.fspath(path)
        self.read_only = read_only
        self.multi_conn = multi_conn
        self._file = OpenFile(self.path, read_only=read_only, shared=multi_conn)
        size = self._file.size
        if block_size is None:
            block_size = min(size & -size, self._file.sector_size)  # the lowest bit that is set
        if size % block_size:
            self._file.close()
            raise ValueError(f"{self.path} has {size} bytes, no multiple of {block_size}")
        self.block_size = block_size
        self.blocks = size // block_size
        # The threads start when they are needed. In the loop's default executor, requests would
        # wait for everything else that the application runs there.
        name = f"aiovblk {os.path.basename(self.path)}"
        self._threads = ThreadPoolExecutor(_THREADS, name, initializer=_block_signals)
        self._unfinished: set[Future[Any]] = set()

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], size: int, *, block_size: int | None = None
    ) -> Self:
        """Create a sparse file of ``size`` bytes, accessible to its owner only, and open it.

        Raises:
            FileExistsError: the file exists; it is left unchanged.
            OSError, TypeError, ValueError: as for the class; then no file is left.

        """
        check_count("size", size, maximum=MAX_REQUEST)
        create_file(path, size)
        try:
            return cls(path, block_size=block_size)
        except BaseException:
            os.unlink(path)
            raise

    @property
    def identity(self) -> str:
        """Identify this file and its version, for :class:`Cache`.

        Of a regular file its path, inode and modification time; of a block device its path and
        number, from which a change of its contents cannot be seen.
        """
        return self._file.identity

    async def read(self, offset: int, length: int) -> bytes:
        """Read from the file."""
        return await asyncio.wrap_future(self._threads.submit(self._file.read, offset, length))

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to the file."""
        # A view for the thread alone: the caller releases `data` when this is cancelled.
        await self._change(self._file.write, offset, data[:])

    async def flush(self) -> None:
        """Make all writes that have returned durable (fdatasync)."""
        await asyncio.wrap_future(self._threads.submit(self._file.flush))

    async def trim(self, offset: int, length: int) -> None:
        """Punch a hole, which reads as zeroes; no-op if the file system cannot do that."""
        await self._change(self._file.allocate, [PUNCH_HOLE], offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Zero the range by fallocate(); write zeroes if the file system cannot do that."""
        modes = [PUNCH_HOLE, ZERO_RANGE] if may_trim else [ZERO_RANGE]
        if not await self._change(self._file.allocate, modes, offset, length):
            await super().write_zeroes(offset, length, may_trim=may_trim)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return the data and the holes of the file; a block device is reported as data."""
        if self._file.is_block_device:
            return await super().extents(offset, length)
        job = self._threads.submit(self._file.extents, offset, length, self.block_size)
        return await asyncio.wrap_future(job)

    async def unmount(self) -> None:
        """Wait for the threads to finish, and close the file."""
        # With a limiter of its own: the default one may be exhausted by calls that wait for this.
        await anyio.to_thread.run_sync(self._close, limiter=anyio.CapacityLimiter(1))

    async def _change(self, change: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a change of the file in a thread, after those that cancelled handlers left running.

        Otherwise a cancelled write that is late would overwrite what was written since.
        """
        while self._unfinished:
            others = [asyncio.wrap_future(job) for job in list(self._unfinished)]
            await asyncio.gather(*others, return_exceptions=True)
        job = self._threads.submit(change, *args, **kwargs)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if not job.cancel():  # it runs already
                self._unfinished.add(job)
                job.add_done_callback(self._unfinished.discard)
            raise

    def _close(self) -> None:
        self._threads.shutdown()
        self._file.close()


def _block_signals() -> None:
    # A signal would interrupt fallocate(), which then starts from the beginning.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
