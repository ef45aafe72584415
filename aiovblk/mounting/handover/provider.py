"""The side of a live mount that hands its device over: listens for successors, and releases it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from ... import kernel, ublk
from ...errors import Error
from ..backend import Backend
from ..connections import ConnectionGroup
from ..options import MountOptions
from ..state import MountState, Phase
from .endpoint import HandoverGeometry, HandoverListener, HandoverRequest, HandoverRequester
from .release import HandoverRelease

logger = logging.getLogger("aiovblk")

UBLK_HANDOVER_UNSUPPORTED = (
    "it was mounted without survive=, and the kernel takes such a ublk device away when its server"
    " parts with it; end that server, and mount the device again"
)
"""Why a device is not handed over that is served by ublk, and does not survive."""

HANDOVER_UNSUPPORTED = "its connections are in workers; end it, and mount the device again"
"""Why a device with workers cannot be handed over, but its server has to end: only a process that
serves the connections itself knows what of them it has taken and answered."""


class HandoverProvider:
    """Hands the device of one mount over, to a successor that asks, or to one that comes later.

    Args:
        backend: what is served.
        connections: its connections.
        state: of the mount; learns that a handover is requested, or refused.
        options: of the mount.

    """

    def __init__(
        self,
        backend: Backend,
        connections: ConnectionGroup,
        state: MountState,
        options: MountOptions,
    ) -> None:
        self._backend = backend
        self._connections = connections
        self._state = state
        self._identity = options.handover.identity
        self._survive = options.handover.survive
        self._is_ublk = options.attach == "ublk"
        self._timeout = options.unmount_timeout
        self._listener: HandoverListener | None = None
        self._requester: HandoverRequester | None = None

    async def detach(self, task: asyncio.Task[None]) -> None:
        """Have the device left attached, for another server, and wait until the mount has ended.

        Args:
            task: the task that runs the mount.

        Raises:
            Error: as for :meth:`.Mount.detach`.

        """
        if not self._survive:
            raise Error("a device that is to outlive its server has to be mounted with survive=")
        if not self._connections.are_local:
            raise Error(HANDOVER_UNSUPPORTED)
        self._state.request_handover()
        if reason := await self.wait_handed_over(task):
            raise Error(reason)
        task.result()

    async def wait_handed_over(self, task: asyncio.Task[None]) -> str | None:
        """Wait until the device is handed over, or the mount has ended; a reason if it is not."""
        refused = self._state.handover_refused
        steps: list[asyncio.Future[Any]] = [task, refused]
        await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
        return refused.result() if refused.done() else None

    def listen(self, disk: kernel.sysfs.Disk, path: str) -> None:
        """Listen for successors, even where they can only be refused, with the reason.

        Without an identity this is a no-op; a failure is logged only.
        """
        if self._identity is None:
            return
        try:
            self._listener = HandoverListener(kernel.locks.socket_path(disk), self._on_request)
        except OSError as exc:
            logger.warning("%s cannot be handed over while it is served: %s", path, exc)

    def close(self) -> None:
        """Listen no more, and refuse the successor that is waiting."""
        if self._listener is not None:
            self._listener.close()
        if self._requester is not None:
            self._requester.refuse("it is unmounted")

    async def release(self, attachment: kernel.AttachedDisk) -> bool:
        """Leave the device attached, and hand it over to the successor that asked, if one did.

        Returns:
            False if that cannot be. The reason is logged and sent to the successor, and requests
            are served as before.

        """
        # Others cannot be left.
        assert isinstance(attachment, kernel.NetlinkAttachment | ublk.IdentifiedAttachment)
        self._state.enter(Phase.HANDING_OVER)
        release = HandoverRelease(
            self._backend.device, self._connections, attachment, self._timeout
        )
        requester, self._requester = self._requester, None
        try:
            await release.run(requester)
        except Error as exc:
            self._state.enter(Phase.SERVING)
            self._state.refuse_handover(str(exc))
            if requester is not None:
                requester.refuse(str(exc))
            logger.warning("%s cannot be handed over: %s", attachment.path, exc)
            return False
        self._state.enter(Phase.HANDED_OVER)
        return True

    def _on_request(self, requester: HandoverRequester) -> None:
        wanted = requester.request
        served = HandoverRequest(self._identity or "", HandoverGeometry.of(self._backend.device))
        if wanted not in (served, replace(served, geometry=None)):
            requester.refuse(f"it serves {served}, which is not {wanted}")
        elif not self._connections.are_local:
            requester.refuse(HANDOVER_UNSUPPORTED)
        elif self._is_ublk and not self._survive:
            requester.refuse(UBLK_HANDOVER_UNSUPPORTED)
        elif self._state.handover_requested.done() or self._state.stop_requested.done():
            requester.refuse("it is being handed over or unmounted")
        else:
            self._requester = requester
            self._state.request_handover()
