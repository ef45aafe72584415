"""The file that holds the bitmaps: its header, written so that one copy is always intact; slots."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Protocol, Self

from ...errors import StorageError
from ..fsync import create_if_missing
from ..openfile import PUNCH_HOLE, OpenFile
from .bits import merge_into
from .header import SLOTS, STRIPE, Header, is_header, pieces, stripe_offset

_NEW_SIZE = 2 * STRIPE
_ZEROES = bytes(STRIPE)


class Medium(Protocol):
    """What the bitmaps are kept on: an :class:`.OpenFile`, or what stands for one in a test."""

    size: int
    """Bytes that it has when it is opened."""

    def read(self, offset: int, length: int) -> bytes:
        """Read exactly so many bytes."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of it; it outlives the process, and is not durable yet."""

    def write_few(self, offset: int, data: bytes) -> None:
        """Write a few bytes, at once."""

    def allocate(self, modes: list[int], offset: int, length: int) -> bool:
        """Punch a hole; return whether it can."""

    def flush(self) -> None:
        """Make all writes durable; once that has failed, it always fails."""

    def close(self) -> None:
        """Close it."""


def open_medium(path: str, *, read_only: bool) -> Medium:
    """Open the file, locked against other processes; create it if it is missing, or empty.

    Raises:
        BlockingIOError: it is open already, in this process or another one.
        StorageError: it is to be read only, and missing.
        OSError: it cannot be opened or created.

    """
    if not read_only:
        create_if_missing(path, _NEW_SIZE)
    elif not os.path.exists(path):
        raise StorageError(
            errno.ENOENT,
            f"{path} does not exist, and the device is read-only, so that nothing would be recorded"
            " in it: leave the layer out",
        )
    return OpenFile(path, read_only=read_only)


def boot_id() -> str:
    """Identify the run of the machine's kernel; empty if that is not known.

    While it lasts, what was written to a file is in it, whatever becomes of processes.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class BitmapFile:
    """An open file of bitmaps.

    Args:
        medium: that it is kept on; it is closed by :meth:`close`.
        path: for messages.

    """

    def __init__(self, medium: Medium, path: str) -> None:
        self._medium = medium
        self._path = path
        self._end = medium.size
        self._number = 0  # of the copy of the header that was written last
        self._intact = 1  # the copy that is durable, so that the other may be written
        self._header: Header | None = None  # that was read or written last
        self._header_lock = Lock()
        self._has_failed = False

    @classmethod
    def open(cls, path: str, *, read_only: bool) -> Self:
        """Open or create the file, see :func:`open_medium`."""
        return cls(open_medium(path, read_only=read_only), path)

    def load(self) -> Header | None:
        """Read the header; None if the file is new.

        Raises:
            StorageError: it is no such file, or damaged.

        """
        if self._end < _NEW_SIZE:
            raise self._foreign_error()
        copies = [self._medium.read(at, STRIPE) for at in (0, STRIPE)]
        if not any(copies[0]) and not any(copies[1]):
            return None
        found = [Header.load(copy, self._path) for copy in copies]
        valid = [(*each, at) for at, each in enumerate(found) if each is not None]
        if not valid:
            raise self._foreign_error(*copies)
        self._number, header, self._intact = max(valid, key=lambda each: each[0])
        self._header = header
        if header.intervals and self._end < header.end:
            raise self.damaged_error(f"has {self._end} bytes instead of {header.end}")
        return header

    def put_header(self, header: Header) -> int:
        """Write the header; it is durable after :meth:`flush`, and :meth:`header_is_durable`.

        Until then, a power failure may leave it, or the one that was durable before. Not to be
        called again meanwhile, unless nothing relies on this one.

        Returns:
            Its number.

        """
        with self._header_lock:
            return self._put(header)

    def _put(self, header: Header) -> int:
        self._header = header
        if self._has_failed:
            header = replace(header, boot="")
        self._number += 1
        self._medium.write((1 - self._intact) * STRIPE, memoryview(header.dump(self._number)))
        return self._number

    def header_is_durable(self, number: int) -> None:
        """Note that this header was flushed, so that the next one goes to the other place."""
        if number == self._number:
            self._intact = 1 - self._intact

    def flush(self) -> None:
        """Make all that was written durable (fdatasync). Once it has failed, it always fails.

        The kernel reports that once, and what it could not write may vanish from the page cache. So
        a header takes note at once that what is there cannot be trusted: the next start is as after
        a power failure.
        """
        try:
            self._medium.flush()
        except OSError:
            with self._header_lock, suppress(OSError):
                self._has_failed = True
                if self._header is not None:
                    self._put(self._header)
            raise

    def extend(self, end: int) -> None:
        """Give the file at least this size, sparsely."""
        if self._end < end:
            self._medium.write(end - 1, memoryview(b"\0"))
            self._end = end

    def write(self, slot: int, begin: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes of a bitmap."""
        view = memoryview(data)
        for at, length, offset in pieces(slot, begin, begin + len(view)):
            self._medium.write(offset, view[at - begin : at - begin + length])

    def writer_of_few(self, slot: int) -> Callable[[int, bytes], None]:
        """Return what writes a few bytes of a bitmap: where, and these; it is called often.

        They must be in one stripe.
        """
        write, start = self._medium.write_few, stripe_offset(slot, 0)

        def write_few(at: int, data: bytes) -> None:
            write(start + at // STRIPE * (SLOTS * STRIPE) + at % STRIPE, data)

        return write_few

    def read(self, slot: int, begin: int, end: int) -> bytearray:
        """Read bytes of a bitmap."""
        found = bytearray()
        for _, length, offset in pieces(slot, begin, end):
            found += self._medium.read(offset, length)
        return found

    def clear(self, slot: int, length: int) -> None:
        """Make a bitmap of so many bytes all zeroes."""
        for _, part, offset in pieces(slot, 0, -(-length // STRIPE) * STRIPE):
            if not self._medium.allocate([PUNCH_HOLE], offset, part):
                self._medium.write(offset, memoryview(_ZEROES)[:part])

    def unite(self, target: int, source: int, length: int) -> None:
        """Set the bits of one bitmap that are set in another one."""
        for begin, part, _ in pieces(source, 0, length):
            union = self.read(target, begin, begin + part)
            merge_into(union, self.read(source, begin, begin + part))
            self.write(target, begin, union)

    def checksum(self, slot: int, length: int) -> int:
        """Return the CRC-32 of a bitmap."""
        found = 0
        for begin, part, _ in pieces(slot, 0, length):
            found = zlib.crc32(self.read(slot, begin, begin + part), found)
        return found

    def close(self) -> None:
        """Close and unlock the file."""
        self._medium.close()

    def damaged_error(self, reason: str) -> StorageError:
        """Return the error of a file that cannot be trusted any more."""
        return StorageError(
            errno.EIO,
            f"{self._path} is damaged: it {reason}. Delete it: a new one is made, without points;"
            " what was to be found by them counts as changed, so copy everything once",
        )

    def _foreign_error(self, *copies: bytes) -> StorageError:
        if any(is_header(copy) for copy in copies):
            return self.damaged_error("has no intact header")
        return StorageError(
            errno.EINVAL, f"{self._path} is no file of bitmaps: name another one, or a new one"
        )
