"""The requests of one ublk device, in the thread that serves it: from tags and back to them.

The device has one queue of 128 tags. Each is either in the kernel, where it waits for a request, or
here, and then it is a request that is owed a result. Descriptors say what the requests are.

What holds here:

* The thread that made a queue is the only one that may use it (the kernel binds its tags to that).
  Only :meth:`Queue.close` may be called from another, once that thread does not use it any more.
* Nothing here waits.
* A ring that stayed open after its thread had ended would leave a device whose requests all fail,
  and that nothing can end. So a queue is closed when its thread ends, when it is garbage, and its
  files are not inherited by forked children (:mod:`aiovblk.atfork`, :mod:`.memory`).
* In a forked child a queue does nothing. (The child's interpreter forgets the other threads at
  once, and with them their queues.)
* The driver learns of the end of a ring by the cancellation of a tag that waits in the kernel. So
  all that are here are given back first.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from weakref import WeakSet

from ..protocol import Command, CommandFlag, Payload
from .commands import (
    COMMIT_AND_FETCH_REQ,
    COPY_OFFSET,
    COPY_TAG_SHIFT,
    DESCRIPTOR_SIZE,
    FETCH_REQ,
    IO_COMMAND,
    IO_FUA,
    IO_NOUNMAP,
    OPERATION_MASK,
    RECOVERY,
    RESULT_OFFSET,
    Feature,
    Operation,
    UblkDeviceInfo,
)
from .io_uring import COMMAND_OFFSET, SQE_SIZE, Ring
from .memory import PAGE, Mapping

# Plain ints: an IntEnum's comparison costs as much as the rest.
_READ, _WRITE, _FLUSH = int(Command.READ), int(Command.WRITE), int(Command.FLUSH)
_FUA, _NO_HOLE = int(CommandFlag.FUA), int(CommandFlag.NO_HOLE)
_WRITE_ZEROES = int(Operation.WRITE_ZEROES)
_UNKNOWN = 0xFFFF  # a command that no device has: it is refused

_COMMANDS = {
    int(Operation.READ): _READ,
    int(Operation.WRITE): _WRITE,
    int(Operation.FLUSH): _FLUSH,
    int(Operation.DISCARD): int(Command.TRIM),
    int(Operation.WRITE_ZEROES): int(Command.WRITE_ZEROES),
}

_SQE_COMMAND = struct.Struct("<I")
_SQE_COMMAND_OFFSET = 8  # cmd_op in struct io_uring_sqe
_RESULT = (COMMAND_OFFSET + RESULT_OFFSET) // 4  # where a slot's result is, in 32-bit words
_SLOT_WORDS = SQE_SIZE // 4

LAST_TRIES = 100
"""How often the last results are submitted, should the kernel be short of memory, or programs have
more requests than there are tags."""

DESCRIPTOR_WORDS = DESCRIPTOR_SIZE // 8
"""64-bit words of a descriptor: sectors above operation and flags, first sector, address."""


class Queue:
    """The tags of one device; made by the thread that serves it.

    Args:
        char: the open /dev/ublkcN, which stays the caller's.
        info: of the device, as the driver has granted it.
        on_closed: called once when the queue is closed, in whatever thread that happens; with
            whether nothing had closed it, but its thread has ended or it is garbage.

    Raises:
        OSError: the kernel refuses.

    Attributes:
        fd: becomes readable when :meth:`take` has something.
        depth: how many tags there are.
        descriptors: what the requests are, :data:`DESCRIPTOR_WORDS` for each tag.
        kills_server: whether the kernel kills a server that does not answer for 30 seconds.
        error: what the kernel has refused, if it was not that the device is taken away.

    """

    def __init__(self, char: int, info: UblkDeviceInfo, on_closed: Callable[[bool], None]) -> None:
        self._ring = Ring(info.depth)
        self._char = char
        self.depth = info.depth
        self._max_io = info.max_io
        self.kills_server = Feature.UNPRIVILEGED_DEV in info.flags
        self._copies = Feature.USER_COPY in info.flags
        # Then the driver sends what is not answered to the next server, or fails it when the device
        # is stopped. (It notices the end of the ring by the end of the open file.)
        self._is_reissued = RECOVERY in info.flags
        # Requests that have come before all was set up: as soon as a device that is taken over has
        # its tags. Nothing else wakes those who wait for them.
        self._arrived: list[int] = []
        self._completed: list[int] = []
        self._owed: set[int] = set()  # tags of requests that are owed a result
        self._returned = 0  # tags that the kernel has given back for good
        self.error: OSError | None = None
        self._on_closed = on_closed
        self._is_closed = False
        self._process = os.getpid()
        self._mappings: list[Mapping] = []
        self._closing = threading.Lock()
        try:
            self._map()
            self._fetch()
        except BaseException:
            self._on_closed = lambda _: None
            self.close()
            raise
        self.fd = self._ring.fd
        _of_process.add(self)
        self._close_with_thread()

    def _map(self) -> None:
        size = -(-self.depth * DESCRIPTOR_SIZE // PAGE) * PAGE
        descriptors = Mapping(self._char, size, writable=False)
        self._mappings.append(descriptors)
        self.descriptors = descriptors.view(form="Q")
        self._results = self._ring.slots.view(form="i")
        self._buffers_at = 0
        if not self._copies:
            buffers = Mapping(None, self.depth * self._max_io)
            self._mappings.append(buffers)
            self._buffers, self._buffers_at = buffers.view(), buffers.address

    def _fetch(self) -> None:
        """Give all tags to the kernel."""
        ring = self._ring
        for tag in range(self.depth):
            address = self._buffers_at + tag * self._max_io if self._buffers_at else 0
            ring.prepare(tag, FETCH_REQ, self._char, IO_COMMAND.pack(0, tag, 0, address))
        ring.push(range(self.depth))
        ring.submit()
        if ring.unsubmitted:
            raise OSError(errno.EIO, "io_uring does not take all requests")
        self._arrived, others = ring.take()
        for _, result in others:
            raise OSError(-result, f"the driver refuses a request: {os.strerror(-result)}")
        slots = ring.slots.view()
        for tag in range(self.depth):  # from now on only the result of a slot changes
            offset = tag * SQE_SIZE + _SQE_COMMAND_OFFSET
            _SQE_COMMAND.pack_into(slots, offset, COMMIT_AND_FETCH_REQ)

    # Requests

    @property
    def has_requests(self) -> bool:
        """Whether :meth:`take` would return any tag, or note the end of some."""
        return not self._is_closed and (self._ring.has_completions or bool(self._arrived))

    def take(self) -> list[int]:
        """Return the tags of requests that have come; each is owed a result from now on."""
        if self._is_closed:
            return []
        tags, others = self._ring.take()
        if self._arrived:
            tags, self._arrived = self._arrived + tags, []
        self._owed.update(tags)
        for _, result in others:
            self._returned += 1
            if result != -errno.ENODEV and self.error is None:
                self.error = OSError(-result, os.strerror(-result))
        return tags

    @property
    def is_over(self) -> bool:
        """Whether the kernel has given all tags back: no request will come."""
        return self._returned == self.depth

    def request(self, tag: int) -> tuple[int, int, int, int]:
        """Return flags, command (both as in NBD), offset and length (both in bytes)."""
        at = tag * DESCRIPTOR_WORDS
        first = self.descriptors[at]
        operation = first & OPERATION_MASK
        command = _COMMANDS.get(operation, _UNKNOWN)
        flags = _FUA if first & IO_FUA else 0
        if command == _FLUSH:
            return flags, command, 0, 0
        if operation == _WRITE_ZEROES and first & IO_NOUNMAP:
            flags |= _NO_HOLE
        return flags, command, self.descriptors[at + 1] << 9, first >> 32 << 9

    def payload(self, tag: int, length: int) -> memoryview:
        """Return what a WRITE writes: memory of its own, which stays as it is.

        Args:
            tag: of the request.
            length: its own, in bytes.

        Raises:
            OSError: the request is over.

        """
        if self._is_closed:
            raise OSError(errno.ENODEV, "the device is gone")
        if not self._copies:
            start = tag * self._max_io
            return memoryview(bytes(self._buffers[start : start + length]))
        data = os.pread(self._char, length, COPY_OFFSET + (tag << COPY_TAG_SHIFT))
        if len(data) != length:
            raise OSError(errno.EIO, f"the kernel gave {len(data)} of {length} bytes to write")
        return memoryview(data)

    def complete(self, tag: int, result: int) -> None:
        """Complete a request; :meth:`submit` gives the tag back to the kernel.

        Args:
            tag: of the request.
            result: bytes of a READ or WRITE, 0 for others; or a negative error number.

        """
        if not self._is_closed:
            self._owed.discard(tag)
            self._results[tag * _SLOT_WORDS + _RESULT] = result
            self._completed.append(tag)

    def place(self, tag: int, data: Payload) -> None:
        """Give the kernel the data of a READ.

        Args:
            tag: of the request.
            data: as many bytes as it asks for.

        Raises:
            OSError: the request is over.

        """
        if self._is_closed:
            raise OSError(errno.ENODEV, "the device is gone")
        length = len(data)
        if not self._copies:
            start = tag * self._max_io
            self._buffers[start : start + length] = data
        elif os.pwrite(self._char, data, COPY_OFFSET + (tag << COPY_TAG_SHIFT)) != length:
            raise OSError(errno.EIO, f"the kernel does not take all {length} bytes of a read")

    @property
    def unsubmitted(self) -> int:
        """How many completed requests :meth:`submit` would give to the kernel."""
        return 0 if self._is_closed else len(self._completed) + self._ring.unsubmitted

    def submit(self) -> None:
        """Give completed requests to the kernel; those that have come meanwhile can be taken.

        Raises:
            OSError: it cannot be used any more.

        """
        if not self._is_closed:
            self._ring.push(self._completed)
            self._completed.clear()
            self._ring.submit()

    # The end

    def close(self, *, is_lost: bool = False) -> None:
        """Give everything back. No-op if it is closed.

        What is not answered fails with EIO; that of a device that survives waits for the next
        server.

        Args:
            is_lost: for ``on_closed``.

        """
        if os.getpid() != self._process:
            return
        with self._closing:
            if self._is_closed:
                return
            if not self._is_reissued:
                with suppress(OSError):  # another thread's, which has ended; or the ring is broken
                    self._fail_owed()
            self._is_closed = True
        self._ring.close()
        for mapping in self._mappings:
            mapping.close()
        self._on_closed(is_lost)

    def _fail_owed(self) -> None:
        # Results that were ready count as well: they may be those of all tags. What the kernel gets
        # back it may give to the next request at once.
        for _ in range(LAST_TRIES):
            self.take()
            if not self._owed and not self.unsubmitted:
                break
            for tag in list(self._owed):
                self.complete(tag, -errno.EIO)
            self.submit()

    def __del__(self) -> None:
        """Close a queue that was dropped with the event loop that served it."""
        if "_closing" in self.__dict__:
            self.close(is_lost=True)

    def _close_with_thread(self) -> None:
        with suppress(AttributeError):
            _of_thread.queues.open.add(self)
            return
        _of_thread.queues = _ThreadQueues()
        _of_thread.queues.open.add(self)


class _ThreadQueues:
    """The queues of one thread, which are closed when it ends."""

    def __init__(self) -> None:
        self.open: WeakSet[Queue] = WeakSet()

    def __del__(self) -> None:
        for queue in list(self.open):
            queue.close(is_lost=True)


_of_thread = threading.local()
_of_process: WeakSet[Queue] = WeakSet()


def _forget_in_child() -> None:
    """Have queues do nothing in a forked child, which has none of their memory."""
    for queue in list(_of_process):
        queue._is_closed = True


os.register_at_fork(after_in_child=_forget_in_child)
