"""Messages between two processes of one program, with open sockets in them."""

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
"""Bytes. A message is small: a call, a result, a record of the log."""

MAX_SOCKETS = 4
"""Open sockets in one message."""

Receive = Callable[[Any, list[socket.socket]], None]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that keep messages apart."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE)
    return ends


class Channel:
    """One end, on the running loop.

    Whatever can be pickled can be sent. Both ends trust each other.

    Args:
        sock: one of :func:`socket_pair`.
        on_message: called with each message, and with the sockets in it, which it has to close.
        on_end: called once, when the other end is closed or gone.

    """

    def __init__(
        self, sock: socket.socket, on_message: Receive, on_end: Callable[[], None]
    ) -> None:
        self._sock = atfork.protect_socket(sock)  # a child would hide that this end is gone
        self._on_message = on_message
        self._on_end = on_end
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._loop.add_reader(sock, self._receive)

    def send(self, message: object, *sockets: socket.socket) -> None:
        """Send a message; it leaves at once, or as soon as the other end has read some.

        Nothing happens when the other end is gone.

        Raises:
            ValueError: it is too large.
            Exception: whatever pickle raises for what it cannot pickle.

        """
        data = pickle.dumps(message)
        if len(data) > MAX_MESSAGE // 2:
            raise ValueError(f"a message of {len(data)} bytes is too large")
        if self._sock.fileno() < 0:
            return
        # Of their own, since the caller may close his while the message waits.
        self._unsent.append((data, [atfork.protect_fd(os.dup(sock.fileno())) for sock in sockets]))
        self._send()

    def close(self) -> None:
        """Let go of the other end, which notices."""
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
                pass  # the other end is gone, as _receive is told as well
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
    """The first message, in a process that has no loop yet; blocks.

    Raises:
        EOFError: the other end is gone.

    """
    data, _ = receive(sock, MAX_MESSAGE, MAX_SOCKETS)
    if not data:
        raise EOFError("the other end of the channel is closed")
    return pickle.loads(data)


def receive(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """One message of :func:`socket.send_fds`.

    Args:
        sock: what it is received from.
        size: bytes of the largest message.
        most: open files that one brings.

    Returns:
        The message, nothing at the end; and the descriptors of its files, which nobody inherits.

    """
    # socket.recv_fds drops its flags, and the descriptors would be inherited.
    files = array.array("i")
    room = socket.CMSG_LEN(most * files.itemsize)
    data, ancillary, _, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            files.frombytes(content[: len(content) // files.itemsize * files.itemsize])
    return data, list(files)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            atfork.close_protected(descriptor)
