"""A fake of io_uring's system calls, for those who submit commands to a fake driver.

Its rings are shared memory, as the kernel's are, so that :class:`aiovblk.ublk.io_uring.Ring` and
all above it are real. What the kernel does differently, and cannot matter here: completions come
from any thread, at any time, since Python's interpreter lock orders them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiovblk import libc
from aiovblk.ublk import io_uring, memory

SETUP, ENTER = 425, 426
SQE_SIZE, CQE_SIZE = 128, 16
SQES_AT = 0x10000000
SQ_TAIL, CQ_HEAD, CQ_TAIL, CQES, SQ_ARRAY = 4, 64, 68, 0x1000, 0x8000
FIRST = (1 << 32) - 40
"""Where the heads and tails of completions start, so that they soon wrap around."""

_PARAMS = struct.Struct("<30I")
_WORD = struct.Struct("<I")
_CQE = struct.Struct("<QiI")
_TIMESPEC = struct.Struct("<qq")
_ARGUMENT = struct.Struct("<QIIQ")


class KernelRing:
    """The kernel's side of one ring.

    Attributes:
        fd: its descriptor: an eventfd that is readable when there are completions.
        owner: the thread that made it.
        errors: what the next calls of io_uring_enter fail with.
        refuses_to_wait: the error number of waiting for a completion; 0 for none.
        takes: how many entries the next call takes at most; None for all.

    """

    def __init__(self, entries: int) -> None:
        self.entries = 1 << (entries - 1).bit_length()
        self.completions = 2 * self.entries
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.memory = os.memfd_create("ring", os.MFD_CLOEXEC)
        os.ftruncate(self.memory, SQES_AT + SQE_SIZE * self.entries)
        self.owner = threading.get_ident()
        self.errors: deque[int] = deque()
        self.takes: int | None = None
        self.refuses_to_wait = 0
        self.is_open = True
        self._submitted = 0
        self._changed = threading.Condition()
        self._write(CQ_HEAD, FIRST)
        self._write(CQ_TAIL, FIRST)

    def _read(self, at: int) -> int:
        number: int = _WORD.unpack(os.pread(self.memory, 4, at))[0]
        return number

    def _write(self, at: int, number: int) -> None:
        os.pwrite(self.memory, _WORD.pack(number & 0xFFFFFFFF), at)

    def next_entry(self) -> bytes:
        """Take the entry that was submitted first."""
        index = self._read(SQ_ARRAY + 4 * (self._submitted % self.entries))
        self._submitted += 1
        return os.pread(self.memory, SQE_SIZE, SQES_AT + SQE_SIZE * index)

    def post(self, user_data: int, result: int) -> None:
        """Complete a command."""
        with self._changed:
            if not self.is_open:
                return
            tail = self._read(CQ_TAIL)
            at = CQES + CQE_SIZE * (tail % self.completions)
            os.pwrite(self.memory, _CQE.pack(user_data, result, 0), at)
            self._write(CQ_TAIL, tail + 1)
            os.eventfd_write(self.fd, 1)
            self._changed.notify_all()

    def _is_empty(self) -> bool:
        return self._read(CQ_HEAD) == self._read(CQ_TAIL)

    def note_taken(self) -> None:
        """Have the descriptor not be readable any more, if there is nothing."""
        with self._changed:
            if self.is_open and self._is_empty():
                with suppress(BlockingIOError):
                    os.eventfd_read(self.fd)

    def wait(self, seconds: float) -> bool:
        """Wait for a completion."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._is_empty(), seconds)

    def close(self) -> None:
        with self._changed:
            self.is_open = False
            os.close(self.memory)


OnCommand = Callable[[KernelRing, int, int, int, bytes], None]
"""Takes the ring, the driver's file, the command, its user data and its payload."""


class FakeIoUring:
    """The system calls: in the place of both the quick and the blocking ones, and of mmap's.

    Args:
        on_command: called with each command that is submitted.
        on_close: called when a ring was closed.

    Attributes:
        rings: those that are open, by descriptor.
        mapped: the sizes of all mappings that there are, by address.
        errors: what the next calls fail with, by name (``mmap``); 0 for one that does not.
        on_setup: called with each ring that is made.

    """

    def __init__(self, on_command: OnCommand, on_close: Callable[[KernelRing], None]) -> None:
        self.rings: dict[int, KernelRing] = {}
        self.mapped: dict[int, int] = {}
        self.errors: dict[str, list[int]] = {}
        self.on_setup: Callable[[KernelRing], None] = lambda ring: None
        self._on_command, self._on_close = on_command, on_close
        self._real: libc.Functions = memory._libc
        self._take = io_uring.Ring.take

    def install(self, patch: Any) -> None:
        """Put it in the place of the kernel's."""
        patch.setattr(memory, "_libc", self)
        patch.setattr(io_uring, "_quick", self)
        patch.setattr(io_uring, "_blocking", self)
        patch.setattr(io_uring.Ring, "take", lambda ring: self.take(ring))

    def take(self, ring: io_uring.Ring) -> tuple[list[int], list[tuple[int, int]]]:
        """Have a ring take its completions; then its descriptor is not readable any more."""
        found = self._take(ring)
        if (kernels := self.rings.get(ring.fd)) is not None:
            kernels.note_taken()
        return found

    def _fails(self, call: str) -> bool:
        errors = self.errors.get(call)
        number = errors.pop(0) if errors else 0
        ctypes.set_errno(number)
        return bool(number)

    # Memory

    def mmap(
        self, address: None, size: int, protection: int, kind: int, fd: int, offset: int
    ) -> int:
        if self._fails("mmap"):
            return -1 & (1 << 64) - 1
        ring = self.rings.get(fd)
        source = fd if ring is None else ring.memory
        found: int = self._real.mmap(address, size, protection, kind, source, offset)
        self.mapped[found] = size
        return found

    def munmap(self, address: int, size: int) -> int:
        assert self.mapped.pop(address) == size, "it is not mapped"
        done: int = self._real.munmap(address, size)
        return done

    def madvise(self, address: int, size: int, advice: int) -> int:
        done: int = -1 if self._fails("madvise") else self._real.madvise(address, size, advice)
        return done

    # Rings

    def syscall(self, number: int | ctypes.c_long, *arguments: int | ctypes.c_long) -> int:
        call, *given = (
            each if isinstance(each, int) else each.value for each in (number, *arguments)
        )
        try:
            return self._setup(*given) if call == SETUP else self._enter(*given)
        except OSError as exc:
            ctypes.set_errno(exc.errno or errno.EIO)
            return -1

    def _setup(self, entries: int, address: int, *_: int) -> int:
        if self._fails("io_uring_setup"):
            return -1
        ring = KernelRing(entries)
        self.rings[ring.fd] = ring
        flags = _PARAMS.unpack(ctypes.string_at(address, _PARAMS.size))[2]
        sq = 0, SQ_TAIL, 0, 0, 0, 0, SQ_ARRAY, 0, 0, 0
        cq = CQ_HEAD, CQ_TAIL, 0, 0, 0, CQES, 0, 0, 0, 0
        head = ring.entries, ring.completions, flags, 0, 0, 0, 0, 0, 0, 0
        ctypes.memmove(address, _PARAMS.pack(*head, *sq, *cq), _PARAMS.size)
        self.on_setup(ring)
        return ring.fd

    def _enter(self, fd: int, count: int, least: int, flags: int, argument: int, size: int) -> int:
        ring = self.rings.get(fd)
        if ring is None:
            raise OSError(errno.EBADF, "no ring")
        if threading.get_ident() != ring.owner:
            raise OSError(errno.EEXIST, "the ring is another thread's")
        if ring.errors:
            raise OSError(ring.errors.popleft(), "it was asked to fail")
        if ring.takes is not None:
            count, ring.takes = min(count, ring.takes), None
        for _ in range(count):
            entry = ring.next_entry()
            (opcode, _, _, file, command) = struct.unpack_from("<BBHiI", entry)
            assert opcode == 46  # IORING_OP_URING_CMD
            (user_data,) = struct.unpack_from("<Q", entry, 32)
            self._on_command(ring, file, command, user_data, entry[48:])
        if least and ring.refuses_to_wait:
            raise OSError(ring.refuses_to_wait, "it was asked to fail")
        if least and not ring.wait(self._seconds(argument, size)):
            raise OSError(errno.ETIME, "no completion")
        return count

    def _seconds(self, argument: int, size: int) -> float:
        *_, address = _ARGUMENT.unpack(ctypes.string_at(argument, size))
        seconds, nanoseconds = _TIMESPEC.unpack(ctypes.string_at(address, _TIMESPEC.size))
        wanted: float = seconds + nanoseconds / 1e9
        return min(wanted, threading.TIMEOUT_MAX)

    def closed(self, fd: int) -> None:
        """Note that a ring was closed, if this is one."""
        if (ring := self.rings.pop(fd, None)) is not None:
            ring.close()
            self._on_close(ring)
