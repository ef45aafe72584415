"""Make one connected socket of standard input and output, for ``aiovblk serve --stdio``.

Programs that start their server this way (inetd, libnbd) pass one socket as both. Others (ssh,
socat) pass two pipes; two threads copy between these and a socket.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .errors import SpecError

PIECE = 1024 * 1024
"""Bytes of one copy."""

SHUTDOWN_TIMEOUT = 5.0
"""Seconds for a client to read what was sent to its pipe."""


@contextmanager
def standard_streams() -> Iterator[socket.socket]:
    """Yield the socket that connects the server with its client.

    From now on, everything that is printed goes to the standard error. Leaving the block waits
    until what was sent to a pipe has arrived there, but only :data:`SHUTDOWN_TIMEOUT` for a client
    that does not read.

    Raises:
        SpecError: standard input is a terminal or is closed, so no client is connected.

    """
    if sys.stdin.isatty():
        raise SpecError("--stdio is for programs that start their server and pass it a socket")
    if any(stat.S_ISCHR(os.fstat(number).st_mode) for number in (0, 1)):
        raise SpecError("--stdio needs a client at standard input and output; one is /dev/null")
    into, out = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    if os.path.sameopenfile(into, out) and stat.S_ISSOCK(os.fstat(into).st_mode):
        os.close(out)
        yield socket.socket(fileno=into)
        return
    ours, servers = socket.socketpair()
    # Daemon threads: a read of a pipe whose writer stays open cannot be ended otherwise.
    sending = threading.Thread(target=_copy_out, args=(ours, out), daemon=True)
    threading.Thread(target=_copy_in, args=(into, ours), daemon=True).start()
    sending.start()
    yield servers
    sending.join(SHUTDOWN_TIMEOUT)  # in the loop's thread, after the last client


def _copy_in(pipe: int, ours: socket.socket) -> None:
    try:
        while piece := os.read(pipe, PIECE):
            ours.sendall(piece)
        ours.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the server has closed its end


def _copy_out(ours: socket.socket, pipe: int) -> None:
    try:
        while piece := memoryview(ours.recv(PIECE)):
            while piece:
                piece = piece[os.write(pipe, piece) :]
    except OSError:
        with suppress(OSError):  # the pipe has no reader: disconnect the server's client
            ours.shutdown(socket.SHUT_RDWR)
    os.close(pipe)
