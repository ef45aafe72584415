"""The fake kernel's end of a connection: sends requests, and receives their replies."""

from __future__ import annotations

import errno
import itertools
import socket
import threading
from concurrent.futures import Future
from contextlib import suppress

from aiovblk.protocol import (
    SIMPLE_REPLY,
    Command,
    ReplyMode,
    Request,
    parse_reply_header,
    serialize_request,
)
from aiovblk.threads import run_in_daemon_thread


class KernelEnd:
    """The kernel's end of a socket pair.

    Attributes:
        in_flight: requests by cookie, each with the future of its reply's data.
        has_failed_all: whether :meth:`fail_all` was called; late replies are ignored then.
        receiving: done once the connection has ended.

    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.in_flight: dict[int, tuple[Request, Future[bytes]]] = {}
        self.has_failed_all = False
        self._cookies = itertools.count(1)
        self._sending = threading.Lock()
        self.receiving = run_in_daemon_thread(self._receive)

    def send(self, command: Command, offset: int, length: int, data: bytes) -> Future[bytes]:
        """Send a request; return the future of its reply's data."""
        answer: Future[bytes] = Future()
        with self._sending:
            request = Request(0, command, next(self._cookies), offset, length)
            if command != Command.DISC:
                self.in_flight[request.cookie] = request, answer
            try:
                self.sock.sendall(serialize_request(request) + data)
            except OSError as exc:
                self.in_flight.pop(request.cookie, None)
                answer.set_exception(OSError(errno.EIO, f"sending failed: {exc}"))
        return answer

    def _receive(self) -> None:
        with suppress(OSError):
            while head := self._exactly(SIMPLE_REPLY.size):
                cookie, *_, error = parse_reply_header(ReplyMode.SIMPLE, head)
                found = self.in_flight.pop(cookie, None)
                if found is None and self.has_failed_all:
                    return  # it came too late
                assert found is not None, "a reply without a request"
                request, answer = found
                if error:
                    answer.set_exception(OSError(error, "the server's reply"))
                elif request.type == Command.READ:
                    answer.set_result(self._exactly(request.length))
                else:
                    answer.set_result(b"")

    def _exactly(self, count: int) -> bytes:
        return self.sock.recv(count, socket.MSG_WAITALL)

    def shut_down(self) -> None:
        """End the connection."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def fail_all(self) -> None:
        """Fail all requests in flight with EIO."""
        self.has_failed_all = True
        while self.in_flight:
            with suppress(KeyError):
                _, (_, answer) = self.in_flight.popitem()
                answer.set_exception(OSError(errno.EIO, "the kernel has failed it"))
