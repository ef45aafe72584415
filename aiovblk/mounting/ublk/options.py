"""Options of a mount that ublk does not have: refused with the reason, never ignored."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..options import MountOptions


def refuse_for_ublk(options: MountOptions) -> None:
    """Refuse options that cannot be with ``attach="ublk"``.

    Raises:
        ValueError: there is one.

    """
    if options.workers is not None:
        reason = "the kernel lets one process serve a ublk device: leave workers out, or use NBD"
        raise ValueError(reason)
    if options.connections != 1:
        raise ValueError(
            "a ublk device has one queue, which one event loop serves: leave connections out"
        )
    if options.timeout is not None:
        raise ValueError(
            "ublk has no timeout for a connection: use handler_timeout, which fails the request"
        )
