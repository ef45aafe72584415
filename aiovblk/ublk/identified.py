"""The attachment of a ublk device that has an identity, and may survive its server.

Where it survives, the driver was given its recovery flags; how such a device is stopped is in
:mod:`.stopping`.
"""

from __future__ import annotations

import errno
import logging

from .. import atfork
from ..errors import AttachError
from ..kernel import RequestQueue, locks
from ..kernel.writeback_child import sync_all_in_child
from .attachment import UblkAttachment
from .commands import RECOVERY, Feature, UblkDeviceInfo
from .identities import lock_device
from .stopping import stop_unused
from .watchdog import watchdog

logger = logging.getLogger("aiovblk")


class IdentifiedAttachment(UblkAttachment):
    """A device with an identity; as :class:`UblkAttachment` otherwise.

    Args:
        info, block_size, queue, features: as there.
        survive: seconds for which the device outlives this process; 0 for not at all.
        lock: of the device, if this process has it; -1 if :meth:`take_ownership` is to take it.

    """

    def __init__(
        self,
        info: UblkDeviceInfo,
        block_size: int,
        queue: RequestQueue,
        features: Feature,
        *,
        survive: float,
        lock: int = -1,
    ) -> None:
        super().__init__(info, block_size, queue, features)
        self._survive = survive
        self._lock = lock
        self._is_taken_over = lock >= 0
        # One that is taken over by a server without `survive` has the flags all the same.
        self._survives = RECOVERY in info.flags

    @property
    def lock(self) -> int:
        """The descriptor of the device's lock, for as long as it is not detached."""
        return self._lock

    # Going live

    def take_ownership(self) -> None:
        """Become the owner that the device's lock names, and have the device watched. Blocks.

        Raises:
            DeviceBusyError: another process has the lock.
            AttachError: the driver has not granted that the device survives.
            OSError: there is no watchdog to be had.

        """
        if self._survive and not self._survives:
            reason = "the driver does not let this process's devices outlive their server"
            raise AttachError(errno.EPERM, reason, self.path)
        if self._lock < 0:
            self._lock = lock_device(self.index)
        # The watchdog of the last server takes a new owner for a new server.
        locks.write_owner(self._lock)
        if self._survives:
            token = locks.owner_token(self._lock)
            watchdog.watch_device(self.index, self.info.mark, self._survive, token)

    def _go_live(self, seconds: float) -> None:
        if self._is_taken_over:
            self._device.end_recovery(seconds)
        else:
            super()._go_live(seconds)

    # Detaching

    def _sync_without_node(self) -> None:
        if self._survives:
            sync_all_in_child()

    def disconnect(self) -> None:
        """Stop the device, and lose nothing that was written to it before.

        Raises:
            OSError: the driver refuses.

        """
        if not self._survives:
            super().disconnect()
            return
        self._release_claim()  # it counts as a user, too
        with self._starting:
            self._is_stopped = True
            if self.ended.done() or stop_unused(self._device):
                return
        # Mere readers and writers do not keep a device from being unmounted.
        try:
            self.sync()
        except OSError as exc:
            logger.warning("%s: what was written last is lost: %s", self.path, exc)
        self._stop()

    def abandon(self) -> None:
        """Detach; a device that survives waits for another server from now on.

        Call it only after :attr:`ended`, or when there is no queue yet.
        """
        if self._survives:
            self.detach()
        else:
            super().abandon()

    def detach(self) -> None:
        """Detach from a device that survives: it waits for another server. No-op: it is closed.

        Call it as :meth:`abandon`.
        """
        if not self._mark_closed():
            return
        # First: the next server, which may be in this process, has the device watched as soon as
        # the driver has parted with this one.
        watchdog.release_to_successor(self.index)
        self._close_char()
        self._mark_ended()
        self._unlock()
        # Last: if nothing else has the node open, closing it writes back, by the next server.
        self._release_claim()

    def close(self) -> None:
        """Close the device, and give its number back. No-op: already closed."""
        try:
            super().close()
        finally:
            watchdog.forget(self.index)
            self._unlock()

    def _unlock(self) -> None:
        with self._guard:
            lock, self._lock = self._lock, -1
        if lock >= 0:
            atfork.close_protected(lock)
