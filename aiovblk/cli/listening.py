"""Where ``aiovblk serve`` listens: an address, sockets of systemd, stdin, a private socket."""

from __future__ import annotations

import os
import socket
import tempfile
from argparse import ArgumentTypeError, Namespace
from contextlib import AsyncExitStack
from dataclasses import dataclass

from ..protocol import DEFAULT_PORT
from ..server.listeners import SocketFile, close_all, listen_tcp, listen_unix
from . import values
from .errors import UsageError
from .privileges import Identity
from .stdio import standard_streams

MAX_INHERITED = 1 << 16
"""Sockets that a service manager may pass; more than its limit of open files (RLIMIT_NOFILE)."""

SD_LISTEN_FDS_START = 3
"""The descriptor of the first socket that systemd passes (socket activation)."""


@dataclass(slots=True)
class Listening:
    """Where a server listens: arguments of :func:`aiovblk.serve`.

    Attributes:
        unix: path of a Unix socket to listen on.
        host: name or address to listen on.
        port: to listen on.
        sockets: that are there already.
        passed: whether ``sockets`` come from the program that has started this one, which often
            reads the standard output itself.
        file: of the Unix socket among ``sockets``.
        folder: of the private socket, if it is one.

    """

    unix: str | None
    host: str | None
    port: int | None
    sockets: list[socket.socket] | None = None
    passed: bool = False
    file: SocketFile | None = None
    folder: str | None = None

    @classmethod
    def of(cls, arguments: Namespace, stack: AsyncExitStack) -> Listening:
        """Take the sockets that were passed, or what the options say.

        With ``--run`` and no option it is a Unix socket in a directory of its own, which ``stack``
        removes: the command finds its address in $uri, and no port can be taken.

        Raises:
            UsageError: the options exclude each other.

        """
        unix, host, port = arguments.socket, arguments.host, arguments.port
        chosen = unix is not None or host is not None or port is not None
        passed = _passed_by_systemd()
        if bool(passed) + chosen + arguments.stdio > 1:
            raise UsageError(
                "--stdio, sockets from systemd (LISTEN_FDS), and --socket, --host, --port"
                " exclude each other"
            )
        if arguments.stdio:
            if arguments.run is not None:
                raise UsageError("--run needs a socket, which its command connects to: no --stdio")
            passed = [stack.enter_context(standard_streams())]
        if passed:
            return cls(None, None, None, passed, passed=True)
        if arguments.run is not None and not chosen:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aiovblk-"))
            return cls(os.path.join(folder, "socket"), None, None, folder=folder)
        return cls(unix, host, port)

    async def bind(self, stack: AsyncExitStack, identity: Identity) -> None:
        """Listen now; the socket's file, and its private folder, belong to ``identity`` then.

        Raises:
            OSError: listening failed.

        """
        if self.sockets is not None:
            return
        self.sockets = []
        stack.callback(close_all, self.sockets)
        if self.unix is not None:
            self.sockets.append(listen_unix(self.unix))
            self.file = SocketFile(self.unix)
            stack.callback(self.file.remove)
            identity.own(self.unix)
            if self.folder is not None:
                identity.own(self.folder)
        if self.host is not None or self.port is not None or self.unix is None:
            host = "localhost" if self.host is None else self.host
            self.sockets += await listen_tcp(host, DEFAULT_PORT if self.port is None else self.port)
        self.unix = self.host = self.port = None


def _passed_by_systemd() -> list[socket.socket]:
    """Take the sockets of socket activation (sd_listen_fds(3)); children do not inherit them."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return []
    number = os.environ.pop("LISTEN_FDS", "0")
    try:
        count = values.count(minimum=0, maximum=MAX_INHERITED)(number)
    except ArgumentTypeError as exc:
        raise UsageError(f"LISTEN_FDS {exc}") from None
    os.environ.pop("LISTEN_FDNAMES", None)
    sockets = [socket.socket(fileno=SD_LISTEN_FDS_START + number) for number in range(count)]
    for sock in sockets:
        sock.set_inheritable(False)
    return sockets
