"""Hand a live device over to another process: the protocol on a Unix socket, both ends of it.

The socket keeps messages apart (SOCK_SEQPACKET), in a directory that only root can write to. The
successor sends what it is going to serve; the answer is either a reason why not, or all that it
takes to go on: the lock of the index, and for each connection the server's end and what was
received on it already (in a file in memory, since that can be a part of a large write).
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ... import atfork, socketfile
from ...device import BlockDevice
from ...errors import AttachError
from ...workers.channel import receive

_MAX_MESSAGE = 4096  # bytes of a message
_UCRED = struct.Struct("=iii")  # struct ucred of include/linux/socket.h: process, user, group
_MAX_FILES = 250  # in one message; the kernel takes 253 (SCM_MAX_FD)

Connections = Sequence[tuple[socket.socket, bytes]]
"""The server's end of each connection, and what was received on it but not taken."""


@dataclass(frozen=True, slots=True)
class HandoverGeometry:
    """The size of a device and of its blocks, which a successor must serve alike.

    Attributes:
        size: in bytes.
        block_size: in bytes.
        read_only: whether the device refuses writes.

    """

    size: int
    block_size: int
    read_only: bool

    @classmethod
    def of(cls, device: BlockDevice) -> HandoverGeometry:
        """Return the geometry of a device."""
        return cls(device.size, device.block_size, bool(device.read_only))


@dataclass(frozen=True, slots=True)
class HandoverRequest:
    """The first message: what a successor is going to serve.

    Attributes:
        identity: of the device.
        geometry: of the device; None if it is made only once the predecessor has handed over.

    """

    identity: str
    geometry: HandoverGeometry | None

    @classmethod
    def parse(cls, message: bytes) -> HandoverRequest:
        """Parse a message of :func:`request_handover`.

        Raises:
            LookupError, ValueError, TypeError: it is something else.

        """
        fields = json.loads(message)
        geometry = fields["geometry"] and HandoverGeometry(**fields["geometry"])
        return cls(fields["identity"], geometry)


class HandoverRequester:
    """A successor that asks for the device and waits: the server's end of its connection.

    Attributes:
        request: what the successor is going to serve.

    """

    def __init__(self, sock: socket.socket, request: HandoverRequest) -> None:
        self._sock = sock
        self.request = request

    def is_connected(self) -> bool:
        """Return whether it still waits."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return not poll.poll(0)

    def refuse(self, reason: str) -> None:
        """Send the reason why it cannot have the device, and disconnect."""
        self._answer({"refused": reason}, [])

    def send(self, lock: int, connections: Connections, geometry: HandoverGeometry) -> bool:
        """Send the device, and disconnect.

        Args:
            lock: the descriptor of the lock of the device's index.
            connections: all there are; the caller closes its own sockets.
            geometry: of the device.

        Returns:
            False if the successor is gone.

        """
        files = [lock]
        memory = [_memory_file(received) for _, received in connections]
        for (sock, _), file in zip(connections, memory, strict=True):
            files += [sock.fileno(), file]
        try:
            return self._answer({"geometry": asdict(geometry)}, files)
        finally:
            for file in memory:
                os.close(file)

    def _answer(self, message: dict[str, Any], files: list[int]) -> bool:
        with self._sock:
            try:
                socket.send_fds(self._sock, [json.dumps(message).encode()], files)
            except OSError:  # it has not waited
                return False
        return True


class HandoverListener:
    """Listen for successors, on the running loop.

    Args:
        path: of the socket; what a predecessor has left there is replaced.
        on_request: called with each successor that sends a valid request.

    Raises:
        OSError: the socket cannot be bound there.

    """

    def __init__(self, path: Path, on_request: Callable[[HandoverRequester], None]) -> None:
        self._path = path
        self._on_request = on_request
        self._loop = asyncio.get_running_loop()
        self._requests: set[socket.socket] = set()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        atfork.protect_socket(self._sock)  # or successors would reach a forked child
        try:
            with socketfile.locked(str(path)):
                path.unlink(missing_ok=True)
                self._sock.bind(str(path))
                path.chmod(0o600)
                self._sock.listen()
                self._inode = path.stat().st_ino
        except BaseException:
            self._sock.close()
            raise
        self._loop.add_reader(self._sock, self._accept)

    def close(self) -> None:
        """Stop listening. The socket of a successor that listens there already stays."""
        self._loop.remove_reader(self._sock)
        with suppress(OSError), socketfile.locked(str(self._path)):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._sock.close()
        for sock in self._requests:
            self._loop.remove_reader(sock)
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            sock, _ = self._sock.accept()
            atfork.protect_socket(sock).setblocking(False)
            self._requests.add(sock)
            self._loop.add_reader(sock, self._receive, sock)

    def _receive(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock)
        self._requests.discard(sock)
        try:
            message = sock.recv(_MAX_MESSAGE)
            if not _is_trusted(sock):
                raise PermissionError(errno.EPERM, "it is another user's process")
            request = HandoverRequest.parse(message)
        except (OSError, LookupError, ValueError, TypeError):
            sock.close()
        else:
            self._on_request(HandoverRequester(sock, request))


@dataclass(frozen=True, slots=True)
class HandoverResult:
    """The device as a successor has received it.

    Attributes:
        lock: the descriptor of the lock of the index.
        connections: all there are.
        geometry: of the device.

    """

    lock: int
    connections: Connections
    geometry: HandoverGeometry

    def close(self) -> None:
        """Close the connections, which the kernel then finds dead."""
        for sock, _ in self.connections:
            sock.close()


def request_handover(
    path: Path, request: HandoverRequest, seconds: float, sock: socket.socket | None = None
) -> HandoverResult | None:
    """Ask the server of a device to hand it over; blocks.

    Args:
        path: where it listens.
        request: what is going to be served.
        seconds: to wait for its answer, which takes as long as its slowest handler.
        sock: to be used for that, and closed; shutting it down meanwhile ends the wait. None for a
            new one.

    Returns:
        None if no process listens there.

    Raises:
        AttachError: the server refuses, or does not answer, or runs as another user than root.

    """
    with sock or socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        try:
            if not _is_trusted(sock):
                reason = f"another user than root answers at {path}; end that program"
                raise AttachError(errno.EPERM, reason)
            sock.send(json.dumps(asdict(request)).encode())
            message, files = receive(sock, _MAX_MESSAGE, _MAX_FILES)
        except AttachError:
            raise
        except OSError as exc:
            reason = f"its server did not hand it over in {seconds:g} s: {exc}"
            raise AttachError(errno.ETIMEDOUT, reason) from exc
    if not message:
        raise AttachError(errno.EBUSY, "its server does not hand it over: it has just ended")
    answer = json.loads(message)
    if "refused" in answer:
        raise AttachError(errno.EBUSY, f"its server does not hand it over: {answer['refused']}")
    lock, *rest = files
    pairs = zip(rest[::2], rest[1::2], strict=True)
    connections = [(socket.socket(fileno=fd), _contents(file)) for fd, file in pairs]
    for sock, _ in connections:
        atfork.protect_socket(sock)
    return HandoverResult(
        atfork.protect_fd(lock), connections, HandoverGeometry(**answer["geometry"])
    )


def _is_trusted(sock: socket.socket) -> bool:
    """Return whether the peer runs as root or as this user, as one must that gets the device."""
    return _user_of(sock) in (0, os.geteuid())


def _user_of(sock: socket.socket) -> int:
    """Return the peer's user id, as of its listen() or connect() (SO_PEERCRED of unix(7))."""
    ucred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(ucred)[1])


def _memory_file(content: bytes) -> int:
    file = os.memfd_create("aiovblk")
    with open(os.dup(file), "wb") as writer:
        writer.write(content)
    return file


def _contents(file: int) -> bytes:
    with open(file, "rb") as reader:
        reader.seek(0)
        return reader.read()
