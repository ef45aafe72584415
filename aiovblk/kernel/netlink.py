"""The one thing that only generic netlink can do: disconnect a device without opening its node.

When a program is stuck in open() of a node, waiting for a server that is gone, every further
open() waits behind it, so no ioctl can be made. NBD_CMD_DISCONNECT takes an index instead, and
works on devices that were attached by ioctl as well.

Messages: include/uapi/linux/netlink.h, genetlink.h and nbd-netlink.h, in native byte order.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

NETLINK_GENERIC = 16
NLM_F_REQUEST_ACK = 0x1 | 0x4
NLMSG_ERROR = 2
GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1
CTRL_ATTR_FAMILY_NAME = 2
NBD_CMD_DISCONNECT = 2
NBD_ATTR_INDEX = 1

TIMEOUT = 5.0
"""Seconds for the kernel to answer."""

_MESSAGE = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_GENERIC = struct.Struct("=BBH")  # struct genlmsghdr: command, version, reserved
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type


def disconnect(index: int, timeout: float) -> None:
    """Disconnect a device at once; requests in flight fail with EIO, dirty pages are dropped.

    Args:
        index: N of /dev/nbdN.
        timeout: seconds to wait for the kernel's answer.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN, EINVAL for an unknown index, ENOENT where this
            network namespace has no NBD family, a time-out otherwise.

    """
    with _open(timeout) as sock:
        _call(
            sock,
            _family(sock),
            NBD_CMD_DISCONNECT,
            _attribute(NBD_ATTR_INDEX, struct.pack("=I", index)),
        )


def is_available() -> bool:
    """Whether the kernel has the family, in this network namespace; may load its module."""
    try:
        with _open(TIMEOUT) as sock:
            _family(sock)
    except OSError:
        return False
    return True


def _open(timeout: float) -> socket.socket:
    # A socket of its own: two users of one socket would take each other's answers.
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
    sock.settimeout(timeout)
    sock.bind((0, 0))
    return sock


def _family(sock: socket.socket) -> int:
    name = _attribute(CTRL_ATTR_FAMILY_NAME, b"nbd\0")
    answer = _call(sock, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name)
    return int(struct.unpack("=H", dict(_attributes(answer))[CTRL_ATTR_FAMILY_ID])[0])


def _call(sock: socket.socket, family: int, command: int, attributes: bytes) -> bytes:
    """Send one command; return the attributes of its answer, after the kernel acknowledged it."""
    body = _GENERIC.pack(command, 1, 0) + attributes
    length = _MESSAGE.size + len(body)
    sock.send(_MESSAGE.pack(length, family, NLM_F_REQUEST_ACK, 1, 0) + body)
    answer = b""
    while True:
        data = sock.recv(65536)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            body, data = data[_MESSAGE.size : length], data[(length + 3) & ~3 :]
            if kind != NLMSG_ERROR:
                answer = body[_GENERIC.size :]
                continue
            number = -struct.unpack_from("=i", body)[0]
            if number:
                raise OSError(number, f"NBD netlink: {os.strerror(number)}")
            return answer


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            raise OSError(errno.EBADMSG, "NBD netlink: malformed answer")
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
