"""Telling systemd how a service fares (sd_notify(3))."""

from __future__ import annotations

import os
import socket

_VARIABLE = "NOTIFY_SOCKET"


class Notifier:
    """Tells systemd, where a unit of ``Type=notify`` has started this program; else nobody."""

    def __init__(self) -> None:
        # It is not for our children, or only for one that is to take our place.
        self._address = os.environ.pop(_VARIABLE, "")

    @property
    def environment(self) -> dict[str, str]:
        """What a successor has to have in its environment."""
        return os.environ | ({_VARIABLE: self._address} if self._address else {})

    def ready(self, status: str) -> None:
        """The service can be used, and this process is it: it may be a successor.

        Args:
            status: what `systemctl status` is to show.

        """
        self._send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def replaced(self, process: int) -> None:
        """Another process is the service from now on, where that may not say so itself."""
        self._send(f"MAINPID={process}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.send(message.encode())
