"""A message channel between two processes of one program, which also passes open sockets."""

from __future__ import annotations

import array
import asyncio
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .. import atfork

MAX_MESSAGE = 1024 * 1024
"""Maximum bytes of a message. Messages are small: a call, a result, a log record."""

MAX_SOCKETS = 4
"""Maximum number of open sockets in one message."""

OnMessage = Callable[[Any, list[socket.socket]], None]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Create the two ends of a channel: Unix sockets that keep message boundaries."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE)
    return ends


class Channel:
    """One end of a channel, on the running loop. Sends and receives anything that can be pickled.

    Both ends trust each other: unpickling runs code.

    Args:
        sock: one of :func:`socket_pair`.
        on_message: called with each message and the sockets in it, which it has to close.
        on_end: called once, when the other end has been closed or its process has ended.

    """

    def __init__(
        self, sock: socket.socket, on_message: OnMessage, on_end: Callable[[], None]
    ) -> None:
        # Protected, since a copy in a forked child would keep the other end from seeing that this
        # end is closed.
        self._sock = atfork.protect_socket(sock)
        self._on_message = on_message
        self._on_end = on_end
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._loop.add_reader(sock, self._receive)

    def send(self, message: object, *sockets: socket.socket) -> None:
        """Send a message with open sockets: at once, or queued until the other end has read some.

        No-op if the channel is closed. The caller may close its sockets at once.

        Raises:
            ValueError: the message is too large.
            Exception: what pickle raises for an object that it cannot pickle.

        """
        data = pickle.dumps(message)
        if len(data) > MAX_MESSAGE // 2:
            raise ValueError(f"a message of {len(data)} bytes is too large")
        if self._sock.fileno() < 0:
            return
        # Duplicates, since the caller may close its sockets while the message is queued.
        self._unsent.append((data, [atfork.protect_fd(os.dup(sock.fileno())) for sock in sockets]))
        self._send()

    def close(self) -> None:
        """Close this end, and drop what is queued; the other end's ``on_end`` is called."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
        while self._unsent:
            _close(self._unsent.popleft()[1])

    def _send(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._sock, [data], descriptors)
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._send)
                return
            except OSError:
                pass  # the other end is closed, which _receive finds out as well
            self._unsent.popleft()
            _close(descriptors)
        self._loop.remove_writer(self._sock)

    def _receive(self) -> None:
        while self._sock.fileno() >= 0:
            try:
                data, descriptors = receive(self._sock, MAX_MESSAGE, MAX_SOCKETS)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self.close()
                self._on_end()
                return
            self._on_message(pickle.loads(data), [socket.socket(fileno=fd) for fd in descriptors])


def receive_first(sock: socket.socket) -> Any:
    """Wait for the first message, in a process that has no event loop yet; blocks.

    Raises:
        EOFError: the other end is closed.

    """
    data, _ = receive(sock, MAX_MESSAGE, MAX_SOCKETS)
    if not data:
        raise EOFError("the other end of the channel is closed")
    return pickle.loads(data)


def receive(sock: socket.socket, size: int, max_files: int) -> tuple[bytes, list[int]]:
    """Receive one message of :func:`socket.send_fds`, with its file descriptors.

    Args:
        sock: the Unix socket to receive from.
        size: maximum bytes of a message.
        max_files: maximum number of descriptors in a message.

    Returns:
        The message, empty at the end of the stream; and its descriptors, which are not inheritable.

    """
    # socket.recv_fds drops its flags, so the descriptors would be inheritable.
    files = array.array("i")
    room = socket.CMSG_LEN(max_files * files.itemsize)
    data, ancillary, _, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            files.frombytes(content[: len(content) // files.itemsize * files.itemsize])
    return data, list(files)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            atfork.close_protected(descriptor)
