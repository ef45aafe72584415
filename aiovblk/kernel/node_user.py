"""A device whose node this process opens: to claim it, to write back, in steps that may hang."""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from .. import atfork
from .sysfs import Disk
from .users import busy_error, refuse_if_unclaimed_users
from .writeback import sync

NODE_TIMEOUT = 3.0
"""Seconds for abandoned steps to close the node, once the device is detached."""


class NodeUser(ABC):
    """What the attachments of both drivers, NBD and ublk, do with the device's node.

    Concurrency: any method may be called from any thread; nearly all block.

    Args:
        disk: by which /sys, users and partitions are found.
        path: the device node.

    Attributes:
        path: the device node.

    """

    def __init__(self, disk: Disk, path: str) -> None:
        self.path = path
        self._disk = disk
        self._claim: int | None = None
        self._guard = threading.Lock()
        self._node_closed = threading.Condition(self._guard)
        self._opening = 0
        self._closed = False

    @property
    def disk(self) -> Disk:
        """By which /sys, users and partitions are found."""
        return self._disk

    @property
    def is_closed(self) -> bool:
        """Whether the device was closed, and may be another server's by now."""
        return self._closed

    def claim_exclusively(self) -> None:
        """Claim the device exclusively: fail if it is in use, and keep it from being used.

        Raises:
            DeviceBusyError: a file system on it is mounted, or something else has claimed it or one
                of its partitions; or a loop device lies on it, or it is exported, which claims
                nothing. Mere readers and writers do not count.

        """
        try:
            claim = atfork.open_protected(self.path, os.O_EXCL)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            raise busy_error(self._disk, self.path) from None
        try:
            refuse_if_unclaimed_users(self._disk, self.path)
        except BaseException:
            atfork.close_protected(claim)
            raise
        with self._guard:
            if not self._closed:
                self._claim = claim
                return
        atfork.close_protected(claim)  # opened too late: the device has been detached meanwhile

    def sync(self) -> None:
        """Write back all dirty data that the kernel has cached for the device.

        Raises:
            OSError: some of it could not be written and is lost, and no program has got that error
                yet.

        """
        # A descriptor of its own: one that was open when a write failed reports the error even
        # after the program that wrote has got it (the kernel's errseq_t).
        with self.using_node():
            try:
                fd = atfork.open_protected(self.path)
            except OSError:  # the node is gone, say, or the process has given up its privileges
                self._sync_without_node()
                return
            try:
                self._sync(fd)
            finally:
                atfork.close_protected(fd)

    def _sync(self, fd: int) -> None:
        """Write back all dirty data of the device, whose open node this is."""
        sync(self._disk, fd)

    @abstractmethod
    def _sync_without_node(self) -> None:
        """Write back all dirty data although the node cannot be opened."""

    def drop_cache(self) -> None:  # noqa: B027 (only attaching by ioctl needs it)
        """Drop what the scan for partitions has left in the page cache.

        No-op where this process does not keep the node open: the kernel drops a device's cache when
        its last user closes it.
        """

    @contextmanager
    def using_node(self) -> Iterator[None]:
        """Have :meth:`_wait_until_unused` wait for a step of this process that has the node open.

        Such a step may have been abandoned because the server did not answer. It ends once the
        device is detached.
        """
        with self._guard:
            self._opening += 1
        try:
            yield
        finally:
            with self._guard:
                self._opening -= 1
                self._node_closed.notify_all()

    def _wait_until_unused(self) -> None:
        """Wait until the abandoned steps of this process have closed the node."""
        with self._guard:
            self._node_closed.wait_for(lambda: not self._opening, NODE_TIMEOUT)

    def _close_claim(self) -> bool:
        """Mark the attachment closed, and release its claim; False if that has been done."""
        if not self._mark_closed():
            return False
        self._release_claim()
        return True

    def _mark_closed(self) -> bool:
        """Mark the attachment closed; False if that has been done."""
        with self._guard:
            was_closed, self._closed = self._closed, True
        return not was_closed

    def _release_claim(self) -> None:
        """Undo :meth:`claim_exclusively`. No-op: nothing is claimed."""
        with self._guard:
            claim, self._claim = self._claim, None
        if claim is not None:
            atfork.close_protected(claim)
