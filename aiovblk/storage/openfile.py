"""The blocking system calls of one open file, for any thread to call.

Each call has its offset (pread, pwrite). The position of the file, which all threads share, is
moved by SEEK_DATA and SEEK_HOLE, and never used.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
import sys
from collections.abc import Sequence

from .. import libc
from ..device import Extent
from .extents import MAX_EXTENTS
from .fsync import Fsync
from .ranges import round_down, round_up

# include/uapi/linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02 | _FALLOC_FL_KEEP_SIZE  # FALLOC_FL_PUNCH_HOLE, which is refused without the other
ZERO_RANGE = 0x10 | _FALLOC_FL_KEEP_SIZE  # FALLOC_FL_ZERO_RANGE

# What file systems, block devices and system call filters return for a mode that they do not know.
# A block device also returns EINVAL for a part of a block.
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_SECTOR = 512
_BLKSSZGET = 0x1268  # include/uapi/linux/fs.h


class OpenFile:
    """An open regular file or block device, locked against other processes.

    Args:
        path: of the file.
        read_only: whether to open it for reading only, with a lock that readers share.
        shared: whether to share the lock with all others that do so.

    Raises:
        BlockingIOError: another process has locked the file.
        OSError: the file cannot be opened, or, with EBUSY, is a block device in use.
        ValueError: the file is empty, or neither a regular file nor a block device.

    Attributes:
        size: bytes, when the file was opened; later calls rely on it.
        sector_size: bytes of a logical block of a block device; 512 for a file, as in nearly every
            disk image.
        is_block_device: whether it is a block device.

    """

    def __init__(self, path: str, *, read_only: bool, shared: bool = False) -> None:
        self._path = path
        # stat() before open(): opening a pipe waits for its other end.
        mode = os.stat(path).st_mode
        self.is_block_device = stat.S_ISBLK(mode)
        if not self.is_block_device and not stat.S_ISREG(mode):
            raise ValueError(f"{path} is neither a regular file nor a block device")
        if self.is_block_device and shared and not read_only:
            raise ValueError(f"{path} is a block device, which cannot be claimed by several")
        self._file = self._open(read_only)
        self._fd = self._file.fileno()
        self._sync = Fsync(path)
        self._where = os.path.realpath(path)
        try:
            self._lock(shared=read_only or shared)
            self.sector_size = self._sector_size()
            self.size = os.lseek(self._fd, 0, os.SEEK_END)  # stat() has 0 for a block device
            if not self.size:
                raise ValueError(f"{path} is empty; `truncate -s 1G {path}` gives it a size")
        except BaseException:
            self._file.close()
            raise

    @property
    def identity(self) -> str:
        """Identify the file; of a regular file also its version, by inode and modification time."""
        status = os.fstat(self._fd)
        if self.is_block_device:
            return f"{self._where} {status.st_rdev}"
        return f"{self._where} {status.st_dev} {status.st_ino} {status.st_mtime_ns}"

    def read(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes."""
        pieces = []
        while length:
            piece = os.pread(self._fd, length, offset)
            if not piece:
                raise self._truncated_error()
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)  # no copy if there is only one

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``."""
        while data:
            written = os.pwrite(self._fd, data, offset)
            offset += written
            data = data[written:]

    def write_few(self, offset: int, data: bytes) -> None:
        """Write a few bytes to the page cache, from the event loop's thread.

        The interpreter's lock is held meanwhile. To release it costs ten times as much where other
        threads wait for it, as those of a :class:`.FileDevice` do.
        """
        if _libc_holding_lock.pwrite(self._fd, data, len(data), offset) != len(data):
            raise libc.last_error(self._path)

    def flush(self) -> None:
        """Make all writes durable (fdatasync). Once it has failed, it always fails."""
        self._sync(lambda: os.fdatasync(self._fd))

    def allocate(self, modes: Sequence[int], offset: int, length: int) -> bool:
        """Call fallocate() with the first of ``modes`` that is supported.

        Returns:
            Whether one is.

        """
        for mode in modes:
            try:
                fallocate(self._fd, mode, offset, length)
            except OSError as exc:
                if exc.errno not in _UNSUPPORTED:
                    raise
            else:
                return True
        return False

    def extents(self, offset: int, length: int, block_size: int) -> list[Extent]:
        """Return holes and data, at most 1024; a block that is a hole only in part is data."""
        end = offset + length
        found: list[Extent] = []
        while offset < end and len(found) < MAX_EXTENTS:
            data, hole = self._next_data(offset)
            data = min(round_down(data, block_size), end)
            hole = min(round_up(hole, block_size), end)
            if offset < data:
                found.append(Extent(data - offset, hole=True, zero=True))
            if data < hole:
                found.append(Extent(hole - data))
            offset = hole
        if os.fstat(self._fd).st_size < self.size:
            raise self._truncated_error()  # the missing end was taken for a hole
        return found[:MAX_EXTENTS]

    def close(self) -> None:
        """Close and unlock the file. Idempotent."""
        if not self._file.closed and not self.is_block_device:
            # Explicitly: a forked child shares the lock, which would last as long as the child.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._file.close()

    def _open(self, read_only: bool) -> io.FileIO:
        # Without O_CREAT, O_EXCL has a meaning for block devices only: an exclusive claim. They are
        # not locked by flock() as well: udev holds that lock shortly whenever a disk has changed.
        claim = os.O_EXCL if self.is_block_device and not read_only else 0
        return io.FileIO(
            self._path,
            "r" if read_only else "r+",
            opener=lambda path, flags: os.open(path, flags | claim),
        )

    def _sector_size(self) -> int:
        if not self.is_block_device:
            return _SECTOR
        result = fcntl.ioctl(self._fd, _BLKSSZGET, bytes(4))
        return int.from_bytes(result, sys.byteorder)

    def _lock(self, *, shared: bool) -> None:
        if self.is_block_device:
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
        except BlockingIOError as exc:
            raise OSError(
                exc.errno, f"{self._path} is in use, by another process or twice by this one"
            ) from None

    def _next_data(self, offset: int) -> tuple[int, int]:
        """Return begin and end of the first data at or behind ``offset``."""
        try:
            begin = os.lseek(self._fd, offset, os.SEEK_DATA)
            return begin, os.lseek(self._fd, begin, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # no data up to the end
                return self.size, self.size
            if exc.errno in _UNSUPPORTED:
                return offset, self.size
            raise

    def _truncated_error(self) -> OSError:
        return OSError(errno.EIO, f"{self._path} has become shorter than {self.size} bytes")


_libc = libc.Functions(fallocate=["int", "int", "int64", "int64"])
_libc_holding_lock = libc.Functions(holding_lock=True, pwrite=["int", "char_p", "size_t", "int64"])


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Punch a hole or zero a range by the system call, which the standard library lacks."""
    if _libc.fallocate(fd, mode, offset, length):
        raise libc.last_error()
