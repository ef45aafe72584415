"""What a mount knows of the kernel's device that it serves, however that is attached.

:class:`.Attachment` is the way by NBD; the room ``ublk/`` has the other one. Nearly everything here
blocks, and some of it waits for requests that the server has to answer: none of it may be called in
the thread of the event loop that serves the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Protocol

from .request_queue import RequestQueue
from .sysfs import Disk


class AttachedDisk(Protocol):
    """A device that is being attached, is attached, or is being detached.

    Concurrency: any method may be called from any thread, except where it says otherwise.

    Attributes:
        index: N of /dev/nbdN or /dev/ublkbN.
        path: the device node.
        ended: done once the kernel has let go and no request is stuck any more.

    """

    index: int
    path: str
    ended: Future[int]

    @property
    def disk(self) -> Disk:
        """By which /sys, its users and its partitions are found."""

    @property
    def queue(self) -> RequestQueue:
        """The settings of its request queue."""

    @property
    def is_closed(self) -> bool:
        """Whether the device was closed, and may be another server's by now."""

    @property
    def forced_steps(self) -> Sequence[Callable[[], None]]:
        """What has the kernel let go when :meth:`disconnect_kernel` does not, strongest last."""

    def start(self) -> None:
        """Have the kernel send requests, if it does not yet. Does not block."""

    def wait_until_live(self, seconds: float) -> None:
        """Wait until the device can be read, and the kernel has scanned it for partitions.

        Raises:
            TimeoutError: not live after ``seconds``.
            OSError: the attachment ended at once, or was closed meanwhile.

        """

    def set_size(self, blocks: int) -> None:
        """Have the kernel change the size: a step of :func:`.resizing.resize`."""

    def claim_exclusively(self) -> None:
        """Claim the device exclusively: fail if it is in use, and keep it from being used.

        Raises:
            DeviceBusyError: it is in use. Mere readers and writers do not count.

        """

    def sync(self) -> None:
        """Write back all dirty data that the kernel has cached for the device.

        Raises:
            OSError: some of it could not be written and is lost, and no program has got that error
                yet.

        """

    def disconnect(self) -> None:
        """Have the kernel say that no more requests come, while those that are left are served."""

    def disconnect_kernel(self) -> None:
        """Have :attr:`ended` come, now that nothing is served any more."""

    def close(self) -> None:
        """Close the device. No-op: already closed. Call it only after :attr:`ended`."""

    def wait_until_free(self, seconds: float) -> bool:
        """Wait until the index can be attached again; False if it is taken after ``seconds``."""

    def abandon(self) -> None:
        """Detach from a device that this process will neither serve any more, nor unmount."""

    def using_node(self) -> AbstractContextManager[None]:
        """Have :meth:`wait_until_free` wait for a step of this process that has the node open."""

    def drop_cache(self) -> None:
        """Drop what the scan for partitions has left in the page cache."""
