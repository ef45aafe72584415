"""A file that is open: the calls that may wait for a medium, for any thread to make.

Offsets are given with each call (pread, pwrite). The position of the file, which all threads
share, is moved by SEEK_DATA and SEEK_HOLE and used by nobody.
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
from .fsync import Fsync

# include/uapi/linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02 | _FALLOC_FL_KEEP_SIZE  # FALLOC_FL_PUNCH_HOLE, which is refused without the other
ZERO_RANGE = 0x10 | _FALLOC_FL_KEEP_SIZE  # FALLOC_FL_ZERO_RANGE

# What file systems, block devices and system call filters say to a mode that they do not know;
# EINVAL is for a part of a block of a block device, too.
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

_SECTOR = 512
_BLKSSZGET = 0x1268  # include/uapi/linux/fs.h

_MAX_EXTENTS = 1024  # of one answer; whoever wants more asks again


class OpenFile:
    """A regular file or block device, locked.

    Args:
        path: of the file.
        read_only: whether to open it for reading only, and to share it with others who do.
        shared: whether to share it with all others who say so.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: it cannot be opened, or, with EBUSY, is a block device in use.
        ValueError: it is empty, or neither a regular file nor a block device.

    Attributes:
        size: bytes; later calls take it for granted.
        sector_size: bytes of a logical block of a block device; 512 for a file, as in nearly every
            image of a disk.
        is_block_device: whether it is one.

    """

    def __init__(self, path: str, *, read_only: bool, shared: bool = False) -> None:
        self._path = path
        # Asked before it is opened: opening a pipe waits for its other end.
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
            self.size = os.lseek(self._fd, 0, os.SEEK_END)  # stat() tells none of a block device
            if not self.size:
                raise ValueError(f"{path} is empty; `truncate -s 1G {path}` gives it a size")
        except BaseException:
            self._file.close()
            raise

    @property
    def identity(self) -> str:
        """What tells it from other files, and a regular one from what it was at other times."""
        status = os.fstat(self._fd)
        if self.is_block_device:
            return f"{self._where} {status.st_rdev}"
        return f"{self._where} {status.st_dev} {status.st_ino} {status.st_mtime_ns}"

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes."""
        pieces = []
        while length:
            piece = os.pread(self._fd, length, offset)
            if not piece:
                raise self._cut_off()
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)  # no copy if there is but one

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``."""
        while data:
            written = os.pwrite(self._fd, data, offset)
            offset += written
            data = data[written:]

    def flush(self) -> None:
        """Make durable what was written; once that failed, it always fails."""
        self._sync(lambda: os.fdatasync(self._fd))

    def allocate(self, modes: Sequence[int], offset: int, length: int) -> bool:
        """Punch or zero by the first of these modes that is known here; returns whether one is."""
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
        """What is a hole, and what is not; a block that is both is data."""
        end = offset + length
        found: list[Extent] = []
        while offset < end and len(found) < _MAX_EXTENTS:
            data, hole = self._next_data(offset)
            data = min(data // block_size * block_size, end)
            hole = min(-(-hole // block_size) * block_size, end)
            if offset < data:
                found.append(Extent(data - offset, hole=True, zero=True))
            if data < hole:
                found.append(Extent(hole - data))
            offset = hole
        if os.fstat(self._fd).st_size < self.size:
            raise self._cut_off()  # what is missing was taken for a hole
        return found[:_MAX_EXTENTS]

    def close(self) -> None:
        """Close the file, which unlocks it. May be called again."""
        if not self._file.closed and not self.is_block_device:
            # A forked child has the same lock, which would last as long as that does.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._file.close()

    def _open(self, read_only: bool) -> io.FileIO:
        # Without O_CREAT, O_EXCL has a meaning for block devices only. They are not locked with
        # flock() as well: udev holds that lock for a moment whenever a disk has changed.
        claim = os.O_EXCL if self.is_block_device and not read_only else 0
        return io.FileIO(
            self._path,
            "r" if read_only else "r+",
            opener=lambda path, flags: os.open(path, flags | claim),
        )

    def _sector_size(self) -> int:
        if not self.is_block_device:
            return _SECTOR
        answer = fcntl.ioctl(self._fd, _BLKSSZGET, bytes(4))
        return int.from_bytes(answer, sys.byteorder)

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
        """Where the first data behind ``offset`` begins and ends."""
        try:
            begin = os.lseek(self._fd, offset, os.SEEK_DATA)
            return begin, os.lseek(self._fd, begin, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # there is none up to the end
                return self.size, self.size
            if exc.errno in _UNSUPPORTED:
                return offset, self.size
            raise

    def _cut_off(self) -> OSError:
        return OSError(errno.EIO, f"{self._path} has become shorter than {self.size} bytes")


_libc = libc.Functions(fallocate=["int", "int", "int64", "int64"])


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call the system's function of this name, which the standard library lacks."""
    if _libc.fallocate(fd, mode, offset, length):
        raise libc.last_error()
