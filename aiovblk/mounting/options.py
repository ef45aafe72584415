"""The options of a mount: checked where they are made, and frozen from then on.

:func:`aiovblk.mounted` explains each; ``mount`` and ``mounted`` list them explicitly, for
``help()`` and editors, and a test keeps their signatures and these fields equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..arguments import MAX_WORKERS, check_count, check_seconds
from ..dispatch import HandlerLimits
from ..kernel import RequestQueue
from .handover.options import NO_HANDOVER, Handover
from .ublk.options import refuse_for_ublk

UNMOUNT_TIMEOUT = 30.0
"""Seconds for which the kernel may be left without an answer during an unmount, by default."""

DEFAULT_QUEUE = RequestQueue()

Attach = Literal["auto", "ioctl", "netlink", "ublk"]
"""How a device is attached: by NBD, in two ways, or by ublk, which ``auto`` never is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """How a device is to be mounted and served.

    Attributes:
        limits: ``concurrency``, ``handler_timeout``, ``slow_request``, ``busy_poll``.
        handover: ``identity``, ``survive`` and ``replace``.

    Raises:
        TypeError, ValueError: an option, or two of them together, cannot be.

    """

    attach: Attach = "auto"
    connections: int = 1
    workers: int | None = None
    limits: HandlerLimits
    timeout: float | None = None
    unmount_timeout: float = UNMOUNT_TIMEOUT
    queue: RequestQueue = DEFAULT_QUEUE
    handover: Handover = NO_HANDOVER
    partitions: bool = False
    memory_safe: bool = False

    def __post_init__(self) -> None:
        check_count("connections", self.connections, maximum=MAX_WORKERS)
        check_count("workers", self.workers, maximum=MAX_WORKERS)
        check_seconds("timeout", self.timeout)
        check_seconds("unmount_timeout", self.unmount_timeout)
        if self.attach not in get_args(Attach):
            known = ", ".join(get_args(Attach))
            raise ValueError(f"attach must be one of {known}, not {self.attach!r}")
        if self.attach == "ioctl" and self.handover.identity is not None:
            raise ValueError(
                "a device that is attached by ioctl has no identity; leave attach out, or use"
                " netlink"
            )
        if self.attach == "ublk":
            refuse_for_ublk(self)
        if self.workers is not None and self.connections != 1:
            raise ValueError("each worker has one connection: leave connections out")
