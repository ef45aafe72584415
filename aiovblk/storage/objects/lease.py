"""Keep a second writer out while the first one lives: a lease with a timeout, which it renews.

The lease does not protect the data; fencing by the records does (:mod:`.records`): clocks may
differ, and processes may sleep for hours. The lease only keeps a new writer from taking a disk over
from one that lives.

It is read and then put, which is not atomic. Of two processes that open a disk at the same time,
the later one's OPEN record counts, and the earlier one may still put its lease over the other's. It
finds out at its next flush, which fails; or, without a flush, when it renews the lease for the
first or second time, since the other renews as often. Meanwhile it reads the disk as it was, and
what it writes is in its memory only.

A holder that sleeps while it releases the lease may delete that of its successor, which then looks
dead until it renews it; should a third writer come in between, the successor is fenced, as after a
silence. Conditional puts would prevent that, but the records would be needed all the same, and a
local folder has no conditional put that replaces.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from ...errors import StorageBusyError
from ...text import quote
from .client import Buffer, ObjectStore
from .keys import LEASE

DEFAULT_LEASE = 30.0
"""Seconds for which a lease is valid without a renewal; a writer renews it three times as often."""

MAX_LEASE = 24 * 3600.0
"""Seconds for which a lease may be valid; one that says more is ignored."""

_LEASE_POLLS = 10  # how often another's lease is read in the time for which it is valid


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that writes to a disk, identified across machines, boots and PID namespaces."""

    host: str
    boot: str
    """The machine's boot: /proc/sys/kernel/random/boot_id."""
    pids: int
    """The inode of its PID namespace, in which `pid` is its number."""
    pid: int
    started: int
    """When it was started, in clock ticks since the boot: process ids are reused."""

    @classmethod
    def this_process(cls) -> Self:
        """Return the process that calls."""
        pid = os.getpid()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids = os.stat("/proc/self/ns/pid").st_ino
        return cls(socket.gethostname(), boot, pids, pid, _start_of(pid) or 0)

    def __str__(self) -> str:
        """Return it for messages: process id and host."""
        return f"process {self.pid} on {quote(self.host)}"

    def is_known_dead(self) -> bool:
        """Whether it ran on this machine, in this PID namespace, and has ended."""
        here = self.this_process()
        if (self.boot, self.pids) != (here.boot, here.pids):
            return False
        started = _start_of(self.pid)
        return not _exists(self.pid) if started is None else started != self.started


def _start_of(pid: int) -> int | None:
    """Return when a process was started; 0 if it has ended, None if that cannot be seen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the command before it may contain spaces
    return 0 if fields[0] in "ZX" else int(fields[19])  # proc(5): (22) starttime


def _exists(pid: int) -> bool:
    # By a signal: /proc may hide the processes of other users (hidepid=).
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The contents of the lease object."""

    epoch: int
    """The writer's."""
    holder: Holder
    seconds: float
    """For which it is valid after a renewal."""
    nonce: str
    """Random; another one with each renewal."""

    def encode(self) -> bytes:
        """Encode the object."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: Buffer) -> Self | None:
        """Decode the object; None if it is invalid, and so is not honoured."""
        try:
            fields = json.loads(bytes(data))
            record = cls(**{**fields, "holder": Holder(**fields["holder"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        holder = record.holder
        numbers = (record.epoch, holder.pids, holder.pid, holder.started)
        is_valid = (
            all(isinstance(each, int) for each in numbers)
            and 0 < holder.pid < 1 << 31
            and isinstance(record.seconds, int | float)
            and 0 < record.seconds <= MAX_LEASE
            and isinstance(record.nonce, str)
        )
        return record if is_valid else None


async def current(objects: ObjectStore) -> LeaseRecord | None:
    """Return the lease on a disk, whether it is still valid or has expired."""
    try:
        return LeaseRecord.decode(await objects.get(LEASE))
    except FileNotFoundError:
        return None


async def wait_until_free(objects: ObjectStore, where: str = "this disk") -> None:
    """Wait until the lease is free: released, expired, or its holder known to be dead.

    After a crash on another machine that takes as long as the lease is valid. A holder that has
    died on this machine is noticed at once.

    Args:
        objects: the disk's folder.
        where: its name, for messages.

    Raises:
        StorageBusyError: its holder lives, since it has renewed it.
        OSError: the store fails.

    """
    first = await current(objects)
    if first is None or first.holder.is_known_dead():
        return
    # By observing renewals, since the clocks of two machines and of the store may differ.
    for _ in range(_LEASE_POLLS):
        await asyncio.sleep(first.seconds / _LEASE_POLLS)
        now = await current(objects)
        if now is None:
            return
        if now.nonce != first.nonce:
            raise StorageBusyError(
                errno.EBUSY,
                f"{where} is in use: {now.holder} writes to it; mount a snapshot of it, or a clone",
            )


class Lease:
    """Hold the lease on a disk, for the process whose OPEN record makes it the writer.

    Args:
        objects: the disk's folder.
        epoch: the writer's.
        seconds: for which it is valid without a renewal; see :data:`DEFAULT_LEASE`.

    """

    def __init__(self, objects: ObjectStore, epoch: int, seconds: float = DEFAULT_LEASE) -> None:
        self._objects = objects
        self._record = LeaseRecord(epoch, Holder.this_process(), seconds, "")

    async def renew(self) -> Holder | None:
        """Take or renew the lease, unless a later writer has it.

        Returns:
            The later writer, which has taken the disk over; None if the lease is renewed.

        Raises:
            OSError: the store fails.

        """
        there = await current(self._objects)
        if there is not None and there.epoch > self._record.epoch:
            return there.holder
        self._record = replace(self._record, nonce=secrets.token_hex(8))
        await self._objects.put(LEASE, self._record.encode())
        return None

    async def release(self) -> None:
        """Release the lease; no-op if another writer has it.

        Raises:
            OSError: the store fails.

        """
        there = await current(self._objects)
        if there is not None and there.epoch == self._record.epoch:
            await self._objects.delete([LEASE])
