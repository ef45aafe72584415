"""What is agreed when a device is attached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .queue import RequestQueue


@dataclass(frozen=True, slots=True)
class AttachConfig:
    """What the kernel has to know of a device.

    Args:
        sockets: descriptors of its ends; several need CAN_MULTI_CONN among the flags.
        block_size: bytes.
        blocks: how many.
        flags: the NBD specification's transmission flags.
        timeout: seconds after which the kernel gives up a connection that does not answer a
            request; 0 for its default, which is never for one, and 30 for several.
        queue: what requests are to look like.
        dead_conn_timeout: seconds for which requests wait when no connection is left, before they
            fail; by netlink only.
        survive: seconds for which the device outlives its server; by netlink only.
        identity: what to know it by then.

    """

    sockets: Sequence[int]
    block_size: int
    blocks: int
    flags: int
    timeout: int
    queue: RequestQueue
    dead_conn_timeout: int = 0
    survive: float = 0
    identity: str | None = None
