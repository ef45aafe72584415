"""Listening sockets: TCP and Unix, the accept loop, keepalive, and their URIs."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from .. import socketfile
from ..protocol import URI

logger = logging.getLogger("aiovblk")

BACKLOG = 128
"""Listen backlog: connections that the kernel queues until they are accepted."""

KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 6}
"""TCP keepalive: seconds without a packet before the first probe, seconds between probes, and how
many may go unanswered. So a client whose machine or network is gone is detected within two minutes.
(The kernel's defaults are two hours and eleven minutes.)"""

ACCEPT_PAUSE = 1.0
"""Seconds until accept() is retried after descriptors or memory ran out."""


class SocketFile:
    """Remove the file of a Unix socket, which outlives the socket otherwise.

    Args:
        name: its path; one that begins with NUL is in the abstract namespace: there is no file.

    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._identity = self._inode()

    def remove(self) -> None:
        """Remove the file, unless another process has replaced it. No-op: removed already.

        One that this process may not remove, since it has given up its privileges, stays.
        """
        if self._identity is not None and self._inode() == self._identity:
            try:
                os.unlink(self._name)
            except PermissionError:
                logger.info("%s stays: its directory cannot be written to any more", self._name)
        self._identity = None

    def _inode(self) -> tuple[int, int] | None:
        try:
            status = os.lstat(self._name)
        except (OSError, ValueError):  # there is none, or cannot be one
            return None
        return status.st_dev, status.st_ino


class SocketAcceptor:
    """Accept clients on one listening socket, on the running loop.

    When descriptors or memory run out, it logs the error and retries after ACCEPT_PAUSE.

    Args:
        sock: the listening socket; it is closed by :meth:`close`.
        accept: called with the socket of each client, which it owns from then on.

    """

    def __init__(self, sock: socket.socket, accept: Callable[[socket.socket], None]) -> None:
        self._sock = sock
        self._accept = accept
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Stop accepting, and close the socket."""
        self._loop.remove_reader(self._sock)
        self._sock.close()
        if self._pause is not None:
            self._pause.cancel()

    def _resume(self) -> None:
        self._loop.add_reader(self._sock, self._on_ready)

    def _on_ready(self) -> None:
        for _ in range(BACKLOG):  # then other callbacks of the loop run
            try:
                client, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                # Out of descriptors or memory: clients stay in the backlog until the retry.
                logger.error(
                    "cannot accept clients: %s; retrying every %g s", exc.strerror, ACCEPT_PAUSE
                )
                self._loop.remove_reader(self._sock)
                self._pause = self._loop.call_later(ACCEPT_PAUSE, self._resume)
                return
            client.setblocking(False)
            self._accept(client)


def tune(client: socket.socket) -> None:
    """Set TCP_NODELAY and keepalive on a client's socket. No-op: it is a Unix socket."""
    if client.family not in (socket.AF_INET, socket.AF_INET6):
        return
    # A reply must not wait for the acknowledgement of the one before (Nagle's algorithm).
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        client.setsockopt(socket.IPPROTO_TCP, option, value)


def listen_unix(name: str, *, mode: int | None = None) -> socket.socket:
    """Listen on a Unix socket.

    The caller removes the file (:class:`SocketFile`). A stale file, of a server that has ended, is
    replaced: under a lock, so that of several servers that start at once one replaces it and the
    others fail, since that one listens.

    Args:
        name: its path.
        mode: of its file, from which the umask takes; None for all that the umask leaves.

    Raises:
        OSError: the path is another file, a server listens there, or the socket cannot be made.

    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if mode is not None:
            # Linux gives the file the mode of the socket (unix_bind() in net/unix/af_unix.c), so
            # that no other user can connect before a chmod().
            os.fchmod(sock.fileno(), mode)
        with nullcontext() if name.startswith("\0") else socketfile.locked(name):
            _bind(sock, name)
            sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise _listen_error(exc, name) from exc
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, name: str) -> None:
    try:
        sock.bind(name)
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE or not _is_stale(name):
            raise
        os.unlink(name)
        sock.bind(name)


def _is_stale(name: str) -> bool:
    """Return whether a path is a socket on which no process listens."""
    if name.startswith("\0") or not stat.S_ISSOCK(os.lstat(name).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
    return False


async def listen_tcp(host: str, port: int) -> list[socket.socket]:
    """Listen on TCP, on every address of ``host`` that this machine has.

    Args:
        host: a name or an address; empty for every address of this machine.
        port: 0 takes any free port, the same for all addresses.

    Raises:
        OSError: the host does not resolve, or listening on an address failed.

    Cancellation: what was opened is closed.

    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as exc:
        raise OSError(exc.errno, f"cannot listen there: {exc.strerror}", host) from exc
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            if sockets and not port:
                port = sockets[0].getsockname()[1]
            try:
                sockets.append(_listen(family, (address[0], port, *address[2:])))
            except OSError as exc:
                # A name may resolve to addresses of a family that is disabled on this machine.
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = exc
        if not sockets and missing is not None:
            raise missing
    except BaseException:
        close_all(sockets)
        raise
    return sockets


def _listen(family: int, address: tuple[str | int, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise _listen_error(exc, f"{address[0]} port {address[1]}") from exc
    return sock


def _listen_error(exc: OSError, where: str) -> OSError:
    # A path that is too long is found by Python, not by the system: its error has no number.
    reason = f"cannot listen there: {exc.strerror or exc}"
    return OSError(exc.errno or errno.EINVAL, reason, where)


def close_all(sockets: Sequence[socket.socket]) -> None:
    """Close sockets. No-op for those that are closed."""
    for sock in sockets:
        sock.close()


def address(peer: object) -> str:
    """Format a client's address, as ``getpeername()`` returns it."""
    if isinstance(peer, tuple):
        host, port = peer[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "a local client"


def address_of_peer(sock: socket.socket) -> str:
    """Format the address of the client that is connected to a socket."""
    try:
        return address(sock.getpeername())
    except OSError:
        return "a disconnected client"


def uri(sock: socket.socket, name: str, *, tls: bool) -> str:
    """Return the NBD URI of an export on a listening socket."""
    address = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        path = os.fsdecode(address)
        # Absolute: clients are in other directories. (An abstract name is no path.)
        path = path if path.startswith("\0") else os.path.abspath(path)
        return str(URI(export=name, socket=path, tls=tls))
    return str(URI(export=name, host=address[0], port=address[1], tls=tls))


def is_listening(sock: socket.socket) -> bool:
    """Return whether a socket listens; otherwise it is a connection."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
