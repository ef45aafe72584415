"""What can happen to a mount."""

from __future__ import annotations

import asyncio

from ..events import EventBroadcaster


class MountState:
    """What happens to a mount. Each is a future that is done from then on.

    Attributes:
        broadcaster: who tells it to those who listen.

    """

    def __init__(self) -> None:
        """Begin with nothing having happened."""
        new = asyncio.get_running_loop().create_future
        self.live: asyncio.Future[None] = new()
        self.stopping: asyncio.Future[None] = new()
        """Somebody wants it unmounted, or it is lost."""
        self.forced: asyncio.Future[None] = new()
        """Somebody wants it unmounted without further patience."""
        self.disconnected: asyncio.Future[None] = new()
        """The kernel has sent DISC."""
        self.stream_ended: asyncio.Future[None] = new()
        """No request comes any more."""
        self.attachment_ended: asyncio.Future[None] = new()
        """NBD_DO_IT has returned."""
        self.leaving: asyncio.Future[None] = new()
        """The device is to be left attached, for another server."""
        self.broadcaster = EventBroadcaster()
