"""One writer at a time: who it is, and whether it lives.

The lease keeps a second writer from taking a disk over from one that lives. It does not protect the
data, the records do (:mod:`.records`): clocks may differ and processes may sleep for hours.

It is read and then put, which is no one step. Of two who open a disk at the same time the later has
the record that counts, and the earlier may still put its lease over the other's. It finds out at
its next flush, which fails; without one, when it renews the lease for the first or second time,
since the other renews as often. Meanwhile what it reads is the disk as it was, and what it writes
is in its memory only. A holder that sleeps while it gives the lease up may delete that of its
successor, who then looks dead until it renews it; should a third come in between, the successor is
fenced, as after a silence. Conditional puts would spare them that, but not the records their work,
and a local folder has none that replace.
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
"""For which a lease is valid that is not renewed; a writer renews it three times as often."""

MAX_LEASE = 24 * 3600.0
"""Seconds for which a lease may be valid; one that says more is not honoured."""

_LEASE_POLLS = 10  # how often a foreign lease is looked at while it is valid


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that writes."""

    host: str
    boot: str
    """Of the machine's run: /proc/sys/kernel/random/boot_id."""
    pids: int
    """The inode of its PID namespace, in which `pid` is its number."""
    pid: int
    started: int
    """When, in clock ticks since the machine's start: numbers are used again."""

    @classmethod
    def this_process(cls) -> Self:
        """Return the process that calls."""
        pid = os.getpid()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pids = os.stat("/proc/self/ns/pid").st_ino
        return cls(socket.gethostname(), boot, pids, pid, _start_of(pid) or 0)

    def __str__(self) -> str:
        """Tell who it is."""
        return f"process {self.pid} on {quote(self.host)}"

    def is_known_dead(self) -> bool:
        """Whether it ran on this machine, where this process would see it, and is gone."""
        here = self.this_process()
        if (self.boot, self.pids) != (here.boot, here.pids):
            return False
        started = _start_of(self.pid)
        return not _exists(self.pid) if started is None else started != self.started


def _start_of(pid: int) -> int | None:
    """When a process was started; 0 if it has ended, None if that cannot be seen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the command before it may have spaces
    return 0 if fields[0] in "ZX" else int(fields[19])  # proc(5): (22) starttime


def _exists(pid: int) -> bool:
    # /proc may hide those of other users (hidepid=).
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What the object says."""

    epoch: int
    holder: Holder
    seconds: float
    nonce: str
    """Another with each renewal."""

    def encode(self) -> bytes:
        """Return the object."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: Buffer) -> Self | None:
        """Return what the object says, or None if that is nothing that could be honoured."""
        try:
            fields = json.loads(bytes(data))
            terms = cls(**{**fields, "holder": Holder(**fields["holder"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        holder = terms.holder
        numbers = (terms.epoch, holder.pids, holder.pid, holder.started)
        can_be = (
            all(isinstance(each, int) for each in numbers)
            and 0 < holder.pid < 1 << 31
            and isinstance(terms.seconds, int | float)
            and 0 < terms.seconds <= MAX_LEASE
            and isinstance(terms.nonce, str)
        )
        return terms if can_be else None


async def current(objects: ObjectStore) -> LeaseRecord | None:
    """Return the lease on a disk, whether it is still valid or not."""
    try:
        return LeaseRecord.decode(await objects.get(LEASE))
    except FileNotFoundError:
        return None


async def wait_until_free(objects: ObjectStore) -> None:
    """Wait until nobody holds the lease, which takes as long as it is valid after a crash.

    A holder that has died on this machine is noticed at once.

    Raises:
        StorageBusyError: its holder lives, since it has renewed it.
        OSError: the store fails.

    """
    first = await current(objects)
    if first is None or first.holder.is_known_dead():
        return
    # By observation, since the clocks of two machines and of the store may differ.
    for _ in range(_LEASE_POLLS):
        await asyncio.sleep(first.seconds / _LEASE_POLLS)
        now = await current(objects)
        if now is None:
            return
        if now.nonce != first.nonce:
            raise StorageBusyError(
                errno.EBUSY,
                f"in use: {now.holder} writes to it; mount a snapshot of it, or a clone",
            )


class Lease:
    """The lease of this process, once the record is there that makes it the writer.

    Args:
        objects: the disk's folder.
        epoch: the writer's.
        seconds: see :data:`DEFAULT_LEASE`.

    """

    def __init__(self, objects: ObjectStore, epoch: int, seconds: float = DEFAULT_LEASE) -> None:
        self._objects = objects
        self._record = LeaseRecord(epoch, Holder.this_process(), seconds, "")

    async def renew(self) -> Holder | None:
        """Renew it.

        Returns:
            Who has it instead, if another has taken the disk over.

        """
        there = await current(self._objects)
        if there is not None and there.epoch > self._record.epoch:
            return there.holder
        self._record = replace(self._record, nonce=secrets.token_hex(8))
        await self._objects.put(LEASE, self._record.encode())
        return None

    async def release(self) -> None:
        """Give it up."""
        there = await current(self._objects)
        if there is not None and there.epoch == self._record.epoch:
            await self._objects.delete([LEASE])
