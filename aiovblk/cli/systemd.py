"""Report to systemd that a service is ready, and which process it is (sd_notify(3))."""

from __future__ import annotations

import os
import socket

_VARIABLE = "NOTIFY_SOCKET"


class Notifier:
    """Send notifications to systemd; no-op unless a unit of ``Type=notify`` runs this program.

    The variable NOTIFY_SOCKET is taken out of the environment: children must not inherit it, except
    a successor that takes over the service.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop(_VARIABLE, "")

    @property
    def environment(self) -> dict[str, str]:
        """The environment for a successor: this process's, with NOTIFY_SOCKET."""
        return os.environ | ({_VARIABLE: self._address} if self._address else {})

    def ready(self, status: str) -> None:
        """Report that the service can be used, and that this process, perhaps a successor, is it.

        Args:
            status: shown by `systemctl status`.

        """
        self._send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def replaced(self, process: int) -> None:
        """Report another process as the service, where systemd may not accept its own report."""
        self._send(f"MAINPID={process}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):  # an abstract socket
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.send(message.encode())
