"""io_uring by its system calls: as little of it as the commands of a driver take.

io_uring_setup(2), io_uring_enter(2), include/uapi/linux/io_uring.h. All requests are commands for a
driver (IORING_OP_URING_CMD). Each lies in a slot of its own, chosen by the caller, and is submitted
by the number of its slot.

What holds here:

* A ring belongs to one thread: completions are put into it by that thread, on its way out of a
  system call. So no memory barriers are needed, which Python lacks. (Completions of control
  commands come from other threads; :meth:`Ring.wait` makes a system call before they are taken.)
* :meth:`Ring.submit` never waits.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from typing import Any

from .. import atfork, libc
from .memory import Mapping

_SETUP, _ENTER = 425, 426  # the same numbers on every architecture

_quick = libc.Functions(holding_lock=True, syscall=["long"] * 7)
_blocking = libc.Functions(syscall=["long"] * 7)

_SETUP_COOP_TASKRUN = 1 << 8  # no interrupts: completions wait until the thread enters the kernel
_SETUP_SQE128 = 1 << 10  # ublk's control commands take 128 bytes
_SETUP_SINGLE_ISSUER = 1 << 12  # EEXIST for another thread
_ENTER_GETEVENTS = 1
_ENTER_EXT_ARG = 1 << 3
_OP_URING_CMD = 46
_OFFSET_SQES = 0x10000000

_PARAMS = struct.Struct("<7I3I 10I 10I")  # struct io_uring_params; two of its parts have 10 words
_SQE = struct.Struct("<BBHiIIQIIQQ")
_TIMEOUT_ARGUMENT = struct.Struct("<QIIQ")  # struct io_uring_getevents_arg
_TIMESPEC = struct.Struct("<qq")

SQE_SIZE = 128
"""Bytes of a slot."""

COMMAND_OFFSET = 48
"""Bytes of a slot before the command itself, of which there may be 80."""

RETRY = 0.01
"""Seconds until what the kernel has had no memory for is submitted again."""


class Ring:
    """An io_uring whose descriptor becomes readable when commands have been completed.

    Args:
        entries: how many slots; the kernel rounds it up to a power of two.

    Raises:
        OSError: ENOSYS if the kernel has no io_uring, EPERM if it is disabled.

    Attributes:
        fd: its descriptor.
        entries: how many slots there are.
        slots: the memory of all slots, each of :data:`SQE_SIZE` bytes.

    """

    def __init__(self, entries: int) -> None:
        import ctypes

        flags = _SETUP_SQE128 | _SETUP_SINGLE_ISSUER | _SETUP_COOP_TASKRUN
        params = bytearray(_PARAMS.pack(0, 0, flags, *[0] * 27))
        holder = (ctypes.c_char * len(params)).from_buffer(params)
        fd = _quick.syscall(_SETUP, entries, ctypes.addressof(holder), 0, 0, 0, 0)
        if fd < 0:
            raise libc.last_error("io_uring_setup")
        self.fd = atfork.protect_fd(fd)
        fields = _PARAMS.unpack(params)
        self.entries, completions, sq, cq = fields[0], fields[1], fields[10:20], fields[20:30]
        self._mappings: list[Mapping] = []
        try:
            self._map(max(sq[6] + 4 * self.entries, cq[5] + 16 * completions), sq, cq, completions)
        except BaseException:
            self.close()
            raise
        self._tail = self._submitted = 0
        # Arguments that are ctypes objects already halve the cost of the call.
        self._count = ctypes.c_long(0)
        numbers = [_ENTER, fd, 0, 0, _ENTER_GETEVENTS, 0, 0]
        self._enter: list[Any] = [ctypes.c_long(number) for number in numbers]
        self._enter[2] = self._count
        self._syscall, self._errno = _quick.syscall, ctypes.get_errno

    def _map(self, size: int, sq: tuple[int, ...], cq: tuple[int, ...], completions: int) -> None:
        """Map the two rings, which one mapping holds (IORING_FEAT_SINGLE_MMAP), and the slots."""
        rings, entries = Mapping(self.fd, size), self.entries
        self._mappings.append(rings)
        slots = Mapping(self.fd, SQE_SIZE * entries, offset=_OFFSET_SQES)
        self._mappings.append(slots)
        self.slots = slots
        self._slots = slots.view()
        self._sq_tail = rings.view(sq[1], sq[1] + 4, "I")
        self._sq_array = rings.view(sq[6], sq[6] + 4 * entries, "I")
        self._cq_head = rings.view(cq[0], cq[0] + 4, "I")
        self._cq_tail = rings.view(cq[1], cq[1] + 4, "I")
        self._cqes = rings.view(cq[5], cq[5] + 16 * completions, "q")
        self._sq_mask, self._cq_mask = entries - 1, completions - 1

    def prepare(self, slot: int, command: int, fd: int, payload: bytes) -> None:
        """Fill a slot; its completion will have the slot's number.

        Args:
            slot: 0 or more, less than :attr:`entries`.
            command: the number that the driver knows it by.
            fd: the driver's file.
            payload: the command itself, at most 80 bytes.

        """
        start = slot * SQE_SIZE
        _SQE.pack_into(self._slots, start, _OP_URING_CMD, 0, 0, fd, command, 0, 0, 0, 0, slot, 0)
        start += COMMAND_OFFSET
        self._slots[start : start + len(payload)] = payload

    def push(self, slots: Iterable[int]) -> None:
        """Have the next :meth:`submit` submit these slots."""
        array, mask, tail = self._sq_array, self._sq_mask, self._tail
        for slot in slots:
            array[tail & mask] = slot
            tail += 1
        self._tail = tail

    @property
    def unsubmitted(self) -> int:
        """How many slots are to be submitted."""
        return self._tail - self._submitted

    def submit(self) -> None:
        """Submit what was pushed, and take completions that the kernel has ready. Never waits.

        What could not be submitted just now stays pushed.

        Raises:
            OSError: EEXIST if another thread calls it; EBADF once the ring is closed.

        """
        if self.fd < 0:  # the number may be another file's by now
            raise OSError(errno.EBADF, "the ring is closed")
        self._sq_tail[0] = self._tail & 0xFFFFFFFF
        self._count.value = self._tail - self._submitted
        done = self._syscall(*self._enter)
        if done >= 0:
            self._submitted += done
        elif self._errno() not in (errno.EINTR, errno.EAGAIN, errno.EBUSY):
            raise libc.last_error("io_uring_enter")

    def wait(self, seconds: float) -> None:
        """Submit what was pushed, and block until there is a completion, or for ``seconds``.

        Returns sooner if not all could be submitted: call it again.

        Raises:
            OSError: as for :meth:`submit`.

        """
        import ctypes

        self.submit()
        if self.has_completions:
            return
        if self.unsubmitted:  # it would wait for what has not begun
            seconds = min(seconds, RETRY)
        nanoseconds = max(int(seconds * 1e9), 0)
        timespec = ctypes.create_string_buffer(
            _TIMESPEC.pack(nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000)
        )
        argument = ctypes.create_string_buffer(
            _TIMEOUT_ARGUMENT.pack(0, 0, 0, ctypes.addressof(timespec))
        )
        flags, size = _ENTER_GETEVENTS | _ENTER_EXT_ARG, _TIMEOUT_ARGUMENT.size
        done = _blocking.syscall(_ENTER, self.fd, 0, 1, flags, ctypes.addressof(argument), size)
        if done < 0 and ctypes.get_errno() not in (errno.EINTR, errno.ETIME):
            raise libc.last_error("io_uring_enter")

    @property
    def has_completions(self) -> bool:
        """Whether :meth:`take` has something."""
        return bool(self._cq_head[0] != self._cq_tail[0])

    def take(self) -> tuple[list[int], list[tuple[int, int]]]:
        """Take what has been completed.

        Returns:
            The slots of those whose result is 0; and slot and result of the others.

        """
        head, tail = self._cq_head[0], self._cq_tail[0]
        done: list[int] = []
        others: list[tuple[int, int]] = []
        cqes, mask = self._cqes, self._cq_mask
        while head != tail:
            at = (head & mask) * 2
            if result := cqes[at + 1] & 0xFFFFFFFF:  # flags are beside it
                others.append((cqes[at], result - (result >> 31 << 32)))
            else:
                done.append(cqes[at])
            head = head + 1 & 0xFFFFFFFF
        self._cq_head[0] = head
        return done, others

    def close(self) -> None:
        """Give the ring back; the kernel cancels the commands that it has. No-op if it is closed.

        Any thread may call it, if none uses the ring meanwhile.
        """
        for mapping in reversed(self._mappings):
            mapping.close()
        self._mappings.clear()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            atfork.close_protected(fd)


def refusal() -> OSError | None:
    """Return why this process may not have an io_uring; None if it may."""
    try:
        Ring(1).close()
    except OSError as exc:
        return exc
    return None


def disabled_by_sysctl() -> int:
    """Return the sysctl ``kernel.io_uring_disabled``: 1 for ordinary users, 2 for all; else 0."""
    try:
        with open("/proc/sys/kernel/io_uring_disabled", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
