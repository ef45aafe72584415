"""Standard input and output as one connected socket, for ``aiovblk serve --stdio``.

Programs that start their server this way (inetd, libnbd) pass one socket on as both. Others (ssh,
socat) pass two pipes, between which and a socket two threads copy.
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
"""Bytes to copy at once."""

SHUTDOWN_TIMEOUT = 5.0
"""Seconds for a client to take what was sent to its pipe."""


@contextmanager
def standard_streams() -> Iterator[socket.socket]:
    """What connects the server with its client.

    Whatever is printed goes to the standard error from now on. Leaving waits until what was sent
    to a pipe has arrived there, but not for ever for a client that does not read.

    Raises:
        SpecError: standard input is a terminal or is closed, so no client is connected.

    """
    if sys.stdin.isatty():
        raise SpecError("--stdio is for programs that start their server; they pass a socket on")
    if any(stat.S_ISCHR(os.fstat(number).st_mode) for number in (0, 1)):
        raise SpecError("--stdio needs a client at standard input and output; one is /dev/null")
    into, out = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    if os.path.sameopenfile(into, out) and stat.S_ISSOCK(os.fstat(into).st_mode):
        os.close(out)
        yield socket.socket(fileno=into)
        return
    ours, servers = socket.socketpair()
    # Daemons: reading a pipe whose writer stays can be ended by nothing else.
    sending = threading.Thread(target=_copy_out, args=(ours, out), daemon=True)
    threading.Thread(target=_copy_in, args=(into, ours), daemon=True).start()
    sending.start()
    yield servers
    sending.join(SHUTDOWN_TIMEOUT)  # in the loop's thread, when nobody is served any more


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
        with suppress(OSError):  # nobody reads the pipe: to the server, its client is gone
            ours.shutdown(socket.SHUT_RDWR)
    os.close(pipe)
