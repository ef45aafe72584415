"""Attach a device: open what serves it, connect, and have the kernel take its ends.

The order: serve first, then attach, since requests come at once. Taking over a device that is
attached already is ``handover/takeover.py``.
"""

from __future__ import annotations

import errno
import math
import socket
import threading

from .. import kernel
from ..errors import AttachError
from .backend import Backend
from .connections import ConnectionGroup, close_all
from .deadlines import StoppableSteps, StoppedError
from .options import MountOptions
from .recovery.reconnect import RECONNECT_TIMEOUT
from .state import MountState

ATTACH_TIMEOUT = 30.0
"""Seconds for attaching, and again for the first reads to be answered."""

REQUEST_TIMEOUT = 120.0
"""Seconds after which the kernel gives up one of several connections on which a request was not
answered, unless the ``timeout`` option says otherwise.

With several connections there must be a limit: only then are the requests of one that is lost sent
again."""

SURVIVING_REQUEST_TIMEOUT = 15.0
"""The same for a device with ``survive``: what was in flight waits for so long when its server has
died, even when another server has taken over long before."""


class AttachSequence:
    """The steps that lead to a served device, each ended early if the mount is stopped.

    Args:
        backend: what is to be served.
        connections: its connections, which are added and connected here.
        state: of the mount.
        options: of the mount.

    Attributes:
        steps: runs steps that end early.

    """

    def __init__(
        self,
        backend: Backend,
        connections: ConnectionGroup,
        state: MountState,
        options: MountOptions,
    ) -> None:
        self.backend = backend
        self.connections = connections
        self.options = options
        self.steps = StoppableSteps(state.stop_requested, options.unmount_timeout)
        self._is_open = False

    async def open_backend(self) -> None:
        """Open what is to be served. No-op if it is open.

        Raises:
            StoppedError: the mount was stopped meanwhile.
            Exception: whatever a device factory raises.

        """
        if not self._is_open:
            self._is_open = True
            await self.steps.run(self.backend.open(self.connections))

    async def attach(self, path: str | None) -> kernel.AttachedDisk:
        """Attach ``path``, or a free device; requests are served when this returns.

        Raises:
            AttachError: as for :func:`aiovblk.mounted`.
            StoppedError: the mount was stopped meanwhile.
            Exception: whatever a device factory raises.

        """
        await self.open_backend()
        connecting = self.connections.connect()
        # In this process that takes no time. A device that is connected is attached, and unmounted
        # in order if the mount is stopped already.
        is_local = self.connections.are_local
        kernel_ends = await (connecting if is_local else self.steps.run(connecting))
        self.connections.start()
        try:
            return await self._attach_kernel(path, kernel_ends)
        except BaseException:
            self.connections.abort()
            raise

    async def _attach_kernel(
        self, path: str | None, kernel_ends: list[socket.socket]
    ) -> kernel.Attachment:
        """Have the kernel take its ends of the connections, which are closed here then."""
        how = self.options.attach
        by_netlink = None if how == "auto" else how == "netlink"
        if self.options.handover.identity is not None:
            by_netlink = True
        config = self.config([sock.fileno() for sock in kernel_ends])
        given_up = threading.Event()

        def attach() -> kernel.Attachment:
            try:
                return kernel.attach(
                    path,
                    config,
                    by_netlink=by_netlink,
                    should_continue=lambda: not given_up.is_set(),
                )
            finally:
                # Not before, however long it takes: the numbers would be those of other files.
                close_all(kernel_ends)

        try:
            # If it attaches too late, nothing serves the device: it is detached again.
            return await self.steps.call(ATTACH_TIMEOUT, attach, undo=kernel.Attachment.undo)
        except StoppedError:
            given_up.set()
            raise
        except TimeoutError as exc:
            given_up.set()
            reason = (
                "opening the device hangs: some program waits there for a server that is gone; "
                "`aiovblk unmount --force` frees it"
            )
            raise AttachError(errno.ETIMEDOUT, reason, path) from exc

    def config(self, sockets: list[int]) -> kernel.AttachConfig:
        """Return what the kernel is given of the device.

        Args:
            sockets: descriptors of the kernel's ends; none if it has them already.

        """
        options = self.options
        survive = options.handover.survive or 0
        timeout = options.timeout or 0
        if len(sockets) > 1 and not timeout:
            timeout = SURVIVING_REQUEST_TIMEOUT if survive else REQUEST_TIMEOUT
        return kernel.AttachConfig(
            sockets,
            block_size=self.backend.device.block_size,
            blocks=self.backend.device.blocks,
            flags=self.backend.flags,
            timeout=math.ceil(timeout),
            queue=options.queue,
            dead_conn_timeout=math.ceil(max(survive, RECONNECT_TIMEOUT)),
            survive=survive,
            identity=options.handover.identity,
        )
