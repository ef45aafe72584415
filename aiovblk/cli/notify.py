"""Telling systemd that a device can be used (sd_notify(3))."""

from __future__ import annotations

import os
import socket


def ready(status: str) -> None:
    """Say so, where a unit of ``Type=notify`` has started this program; does nothing elsewhere.

    Args:
        status: what `systemctl status` is to show.

    """
    address = os.environ.pop("NOTIFY_SOCKET", "")  # it is not for our children
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.send(f"READY=1\nSTATUS={status}".encode())
