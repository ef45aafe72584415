"""The sockets that a server listens on, and how clients name them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Sequence

from ..protocol import URI

BACKLOG = 128
"""Clients that may wait for being accepted."""


def listen_unix(path: str | os.PathLike[str]) -> socket.socket:
    """Listen on a Unix socket; its file is made with the mode that the umask leaves.

    The caller takes the file away. One that a server left which is gone is replaced.

    Raises:
        OSError: something else has that name, a server listens there, or it cannot be made.

    """
    name = os.fspath(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(name)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or not _is_left_over(name):
                raise OSError(exc.errno, f"cannot listen there: {exc.strerror}", name) from exc
            os.unlink(name)
            sock.bind(name)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_left_over(name: str) -> bool:
    """Whether a name is that of a socket on which nobody listens."""
    if not stat.S_ISSOCK(os.lstat(name).st_mode):
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
    """Listen on TCP, on every address that ``host`` has.

    Args:
        host: a name or an address; empty for every address of this machine.
        port: 0 takes any that is free, the same for all addresses.

    Raises:
        OSError: there is no such host, or an address cannot be listened on.

    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as exc:
        raise OSError(exc.errno, f"cannot listen there: {exc.strerror}", host) from exc
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            if sockets and not port:
                port = sockets[0].getsockname()[1]
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError:
                continue  # a family that this machine has switched off
            sockets.append(sock)
            _listen(sock, (address[0], port, *address[2:]))
    except BaseException:
        close_all(sockets)
        raise
    return sockets


def _listen(sock: socket.socket, address: tuple[str | int, ...]) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Inherited by what is accepted: a client whose machine is gone is found out some day.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as exc:
        where = f"{address[0]} port {address[1]}"
        raise OSError(exc.errno, f"cannot listen there: {exc.strerror}", where) from exc


def close_all(sockets: Sequence[socket.socket]) -> None:
    """Close sockets."""
    for sock in sockets:
        sock.close()


def uri(sock: socket.socket, name: str, *, tls: bool) -> str:
    """How a client names an export on a listening socket."""
    address = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return str(URI(export=name, socket=os.fsdecode(address), tls=tls))
    return str(URI(export=name, host=address[0], port=address[1], tls=tls))


def is_listening(sock: socket.socket) -> bool:
    """Whether a socket accepts connections; otherwise it is one."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
