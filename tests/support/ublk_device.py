"""One device of the fake ublk driver: its tags, its page cache, its nodes."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from aiovblk.kernel import sysfs

from .fake_io_uring import KernelRing
from .file_id import FileId, file_id

if TYPE_CHECKING:
    from .fake_ublk import FakeUblk

PAGE = 4096
SECTOR = 512
COPY_AT, COPY_SHIFT = 0x80000000, 25
RECOVERY = 1 << 3 | 1 << 4
UNPRIVILEGED, USER_COPY = 1 << 5, 1 << 7
DEPTH, STATE, MAX_IO, SERVER, FLAGS = 1, 2, 4, 6, 8
DEAD, LIVE, QUIESCED = 0, 1, 2
VOLATILE_CACHE = 4
LOGICAL_SHIFT = 12  # where it is in the parameters

DESCRIPTOR = struct.Struct("<IIQQ")


class Op(IntEnum):
    """UBLK_IO_OP_*."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3
    WRITE_ZEROES = 5


class Asked:
    """A request of a program."""

    def __init__(self, op: int, offset: int, length: int, data: bytes, flags: int) -> None:
        self.op, self.offset, self.length, self.data, self.flags = op, offset, length, data, flags
        self.answer: Future[bytes] = Future()

    def fail(self, error: int) -> None:
        if not self.answer.done():
            self.answer.set_exception(OSError(error, "the answer of the driver"))


class FakeUblkDevice:
    """A device.

    Attributes:
        fields: of struct ublksrv_ctrl_dev_info.
        parameters: what SET_PARAMS was given.
        char: the file that is /dev/ublkcN.
        node: the file that is /dev/ublkbN.
        dirty: pages of the page cache that are not written back, by offset.
        hides_char: the error number of opening /dev/ublkcN; 0 for none.
        hides_node: whether /dev/ublkbN does not appear.
        keeps_node: whether it is not the user's who has made the device.
        most: requests that programs have in flight at once; others wait.
        most_in_flight: the largest number of requests that the server had at once.

    """

    def __init__(self, kernel: FakeUblk, number: int, fields: list[int]) -> None:
        self.number, self.fields = number, fields
        self.parameters = b""
        self.char = os.memfd_create(f"ublkc{number}", os.MFD_CLOEXEC)
        os.ftruncate(self.char, COPY_AT + (fields[DEPTH] << COPY_SHIFT))
        self.char_id = file_id(self.char)
        self.node = kernel.folder / f"ublkb{number}"
        self.node.touch()
        self.dirty: dict[int, bytes] = {}
        self.hides_char = kernel.char_error
        self.hides_node = kernel.hides_node
        self.keeps_node = kernel.keeps_node
        self.is_deleted = False
        self.ring: KernelRing | None = None
        self.most = fields[DEPTH]
        self.most_in_flight = 0
        self._kernel = kernel
        self._changed = kernel.changed
        self._mutex = threading.RLock()  # the driver's ub->mutex
        self._idle: dict[int, int] = {}  # tags that wait in the kernel, and their buffers
        self._fetched = 0
        self._in_flight: dict[int, Asked] = {}
        self._waiting: deque[Asked] = deque()
        self._is_stopped = self._is_broken = False
        self._directory = sysfs.SYS_BLOCK / f"ublkb{number}"
        tree = kernel.tree
        tree.write(self._char_directory / "dev", f"240:{number}\n")

    @property
    def _char_directory(self) -> Path:
        return sysfs.SYS_BLOCK.parent / "class/ublk-char" / f"ublkc{self.number}"

    @property
    def is_live(self) -> bool:
        return self.fields[STATE] == LIVE

    @property
    def is_unprivileged(self) -> bool:
        return bool(self.fields[FLAGS] & UNPRIVILEGED)

    @property
    def survives(self) -> bool:
        return self.fields[FLAGS] & RECOVERY == RECOVERY

    @property
    def size(self) -> int:
        """Bytes, as the parameters or UPDATE_SIZE say."""
        return sysfs.size(f"ublkb{self.number}")

    @property
    def setting(self) -> dict[str, str]:
        """What the files of its request queue say."""
        return {
            each.name: each.read_text().strip() for each in (self._directory / "queue").iterdir()
        }

    # Requests

    def send(self, op: int, offset: int, length: int, data: bytes, flags: int) -> Future[bytes]:
        asked = Asked(op, offset, length, data, flags)
        with self._changed:
            if self._is_broken or self._is_stopped:
                asked.fail(errno.EIO)
            else:
                self._waiting.append(asked)
                self._give()
        return asked.answer

    def _give(self) -> None:
        """Give requests to the server, as many as there are tags."""
        if self.ring is None:  # it waits for another one
            return
        while self._waiting and self._idle and len(self._in_flight) < self.most:
            asked = self._waiting.popleft()
            tag = min(self._idle)
            address = self._idle.pop(tag)
            self._in_flight[tag] = asked
            self.most_in_flight = max(self.most_in_flight, len(self._in_flight))
            first, sectors = asked.op | asked.flags, asked.length // SECTOR
            packed = DESCRIPTOR.pack(first, sectors, asked.offset // SECTOR, address)
            os.pwrite(self.char, packed, tag * DESCRIPTOR.size)
            if asked.op == Op.WRITE:
                if self.fields[FLAGS] & USER_COPY:
                    os.pwrite(self.char, asked.data, COPY_AT + (tag << COPY_SHIFT))
                else:
                    ctypes.memmove(address, asked.data, len(asked.data))
            self.ring.post(tag, 0)

    def fetch(self, ring: KernelRing, tag: int, address: int) -> None:
        with self._changed:
            if number := self._kernel.failing.get("FETCH"):
                ring.post(tag, -number)
                return
            self.ring = ring
            self._fetched += 1
            self._idle[tag] = address
            self._changed.notify_all()

    def commit(self, tag: int, result: int, address: int) -> None:
        with self._changed:
            ring, asked = self.ring, self._in_flight.pop(tag, None)
            assert ring is not None
            if asked is None:
                self._kernel.faults.append(f"a result of tag {tag} without a request")
                ring.post(tag, -errno.EINVAL)
                return
            if number := self._kernel.failing.get("COMMIT"):
                asked.fail(errno.EIO)
                ring.post(tag, -number)
                return
            self._idle[tag] = address
            self._answer(asked, tag, result, address)
            if self._is_stopped:
                self._give_back(tag)
            else:
                self._give()
            self._changed.notify_all()

    def _answer(self, asked: Asked, tag: int, result: int, address: int) -> None:
        moves = asked.op in (Op.READ, Op.WRITE)
        if result < 0:
            asked.fail(-result)
        elif result != (asked.length if moves else 0):
            self._kernel.faults.append(f"{Op(asked.op).name} of {asked.length} bytes: {result}")
            asked.fail(errno.EIO)
        elif asked.op != Op.READ:
            asked.answer.set_result(b"")
        elif self.fields[FLAGS] & USER_COPY:
            asked.answer.set_result(os.pread(self.char, result, COPY_AT + (tag << COPY_SHIFT)))
        else:
            asked.answer.set_result(ctypes.string_at(address, result))

    def _give_back(self, tag: int) -> None:
        del self._idle[tag]
        assert self.ring is not None
        self.ring.post(tag, -errno.ENODEV)

    def write_back(self, *, flush: bool) -> None:
        """Write what programs have cached."""
        dirty, self.dirty = self.dirty, {}
        failure = None
        for offset, content in dirty.items():
            try:
                self.send(Op.WRITE, offset, len(content), content, 0).result()
            except OSError as exc:
                failure = exc
        if flush and self.parameters[8] & VOLATILE_CACHE:
            with suppress(OSError):
                self.send(Op.FLUSH, 0, 0, b"", 0).result()
        if failure is not None:
            self._kernel.note("lost")
            raise failure

    # Life

    def start(self, server: int) -> None:
        with self._mutex:
            if self._is_stopped or self._is_broken:
                self._kernel.faults.append("START_DEV after the end")
                raise OSError(errno.ENODEV, "it has ended")
            with self._changed:
                self._changed.wait_for(lambda: self._fetched >= self.fields[DEPTH], 60)
            (sectors,) = struct.unpack_from("<Q", self.parameters, 24)
            self._show(sectors * SECTOR)
            self.fields[STATE], self.fields[SERVER] = LIVE, server
            if not self.is_unprivileged:
                with suppress(OSError):  # looks for partitions
                    self.send(Op.READ, 0, PAGE, b"", 0).result()
            self._kernel.note("live")

    def _show(self, size: int) -> None:
        tree = self._kernel.tree
        if not self._directory.exists():
            tree.device(f"ublkb{self.number}", f"259:{self.number}")
            block_size = 1 << self.parameters[LOGICAL_SHIFT]
            tree.write(self._directory / "queue/logical_block_size", f"{block_size}\n")
            tree.write(self._directory / "queue/scheduler", "[mq-deadline] none\n")
            tree.write(self._directory / "queue/max_sectors_kb", "1024\n")
            tree.write(self._directory / "queue/read_ahead_kb", "128\n")
        tree.write(self._directory / "size", f"{size // SECTOR}\n")

    def set_size(self, size: int) -> None:
        with self._mutex:
            self._show(size)

    def stop(self) -> None:
        with self._mutex:
            if self.is_live and not self._is_broken:
                self._kernel.before_stop()
                if self.survives:
                    self.dirty.clear()
                with suppress(OSError):
                    self.write_back(flush=False)
            if self.ring is None:
                self.fail_all()
            with self._changed:
                self._changed.wait_for(lambda: not self._in_flight and not self._waiting)
                self._is_stopped = True
                self._end()
                for tag in list(self._idle):
                    self._give_back(tag)

    def stop_unused(self) -> None:
        if self._count_open(file_id(self.node)):
            raise OSError(errno.EBUSY, "it is open")
        self.write_back(flush=False)  # as the last one that has closed it did
        self.stop()

    def quiesce_if_unserved(self) -> None:
        """Let a device that survives wait for another server, if its own has closed all it had."""
        is_unserved = self.survives and self.is_live and self.ring is None
        if is_unserved and self._count_open(self.char_id) == 1:  # the fake's own
            self.fields[STATE] = QUIESCED
            self._kernel.note("it waits")

    def start_recovery(self) -> None:
        if self.fields[STATE] != QUIESCED:
            raise OSError(errno.EBUSY, "it has a server")

    def end_recovery(self, server: int) -> None:
        with self._mutex, self._changed:
            self._changed.wait_for(lambda: self._fetched >= self.fields[DEPTH], 60)
            self.fields[STATE], self.fields[SERVER] = LIVE, server
            self._give()

    def _end(self) -> None:
        self.fields[STATE], self.fields[SERVER] = DEAD, -1
        if self._directory.exists():
            self._kernel.tree.remove(f"ublkb{self.number}", f"259:{self.number}")

    def end_of_ring(self) -> None:
        with self._changed:
            if self._is_stopped:
                return
            if not self._idle and self._in_flight:
                self._kernel.faults.append("the ring was closed with all tags: nothing ends them")
            self._idle.clear()
            if self.survives and self.fields[STATE] != DEAD:
                self._waiting.extendleft(reversed(self._in_flight.values()))
                self._in_flight.clear()
                self.ring, self._fetched = None, 0
                return
            self._is_broken = True
            self.fail_all()
            self._end()

    def fail_all(self) -> None:
        """Fail what is in flight, and what waits."""
        with self._changed:
            for asked in [*self._in_flight.values(), *self._waiting]:
                asked.fail(errno.EIO)
            self._in_flight.clear()
            self._waiting.clear()
            self._changed.notify_all()

    def count_users(self) -> int:
        """Count the descriptors and mappings of its nodes, beside the fake's own."""
        return self._count_open(self.char_id, file_id(self.node)) - 1

    @staticmethod
    def _count_open(*files: FileId) -> int:
        found = 0
        for fd in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                found += file_id(int(fd)) in files
        return found

    def close(self) -> None:
        """Forget it."""
        os.close(self.char)
        self.node.unlink()
        (self._char_directory / "dev").unlink()
        self._char_directory.rmdir()
