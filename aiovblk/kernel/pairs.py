"""The socket pairs between the kernel and a server."""

from __future__ import annotations

import socket

from .. import forks

SOCKET_BUFFER = 4 * 1024 * 1024
"""Bytes that each end may have under way; the default of 208 KiB makes large requests wait."""

_SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h; Python has no name for it


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """The server's end of a connection, and the kernel's."""
    ends = socket.socketpair()
    for end in ends:
        forks.protect_socket(end)
        try:
            # Beyond net.core.wmem_max, which takes CAP_NET_ADMIN.
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SOCKET_BUFFER)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
    return ends
