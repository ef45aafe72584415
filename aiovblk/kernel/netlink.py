"""NBD's generic netlink family: attach, reconfigure and disconnect devices by index.

An ioctl needs an open node, and a thread that stays in NBD_DO_IT. A netlink command needs an index,
or finds a free one without a race, and returns at once: the device then lives for as long as its
sockets do, or longer. DISCONNECT works on devices that were attached by ioctl as well, and is the
only way to free some of them: when a program is stuck in open() of a node, waiting for a server
that is gone, every further open() waits behind it, and no ioctl can be made.

Messages: include/uapi/linux/netlink.h, genetlink.h and nbd-netlink.h, in native byte order; what
the commands do is in drivers/block/nbd.c, from nbd_genl_connect on. This is less code than it takes
to call a netlink library, and needs no import: pyroute2 0.9 takes 0.15 s and 25 MB for it, and an
event loop of its own in each thread.

The watchdog process runs this file without the package: it imports the standard library only.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum, IntFlag

# include/uapi/linux/netlink.h and genetlink.h
NETLINK_GENERIC = 16
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NLM_F_REQUEST_ACK = 0x1 | 0x4
NLM_F_ACK_TLVS = 0x200
NLMSG_ERROR = 2
NLMSGERR_ATTR_MSG = 1
GENL_ID_CTRL = 16
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID = 1
CTRL_ATTR_FAMILY_NAME = 2
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

TIMEOUT = 10.0
"""Seconds for the kernel to answer. A command of another program that waits delays all others."""


class NetlinkCommand(IntEnum):
    """The commands of the family (enum nbd_cmd)."""

    CONNECT = 1
    DISCONNECT = 2
    RECONFIGURE = 3
    LINK_DEAD = 4
    """An event: a connection has died without a disconnect."""


class Attribute(IntEnum):
    """The attributes of a command (enum nbd_attr)."""

    INDEX = 1
    SIZE_BYTES = 2
    BLOCK_SIZE_BYTES = 3
    TIMEOUT = 4
    SERVER_FLAGS = 5
    CLIENT_FLAGS = 6
    SOCKETS = 7
    DEAD_CONN_TIMEOUT = 8
    BACKEND_IDENTIFIER = 10


SOCK_ITEM = 1  # enum nbd_sock_item
SOCK_FD = 1  # enum nbd_sock_attr


class ClientFlag(IntFlag):
    """How the kernel treats the device (NBD_CFLAG_*)."""

    DESTROY_ON_DISCONNECT = 1
    DISCONNECT_ON_CLOSE = 2


_MESSAGE = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
GENERIC = struct.Struct("=BBH")  # struct genlmsghdr: command, version, reserved
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_NUMBER = {2: struct.Struct("=H"), 4: struct.Struct("=I"), 8: struct.Struct("=Q")}


def connect(
    index: int | None,
    sockets: Sequence[int],
    *,
    size: int,
    block_size: int,
    flags: int,
    timeout: int,
    dead_conn_timeout: int = 0,
    identity: str | None = None,
) -> int:
    """Attach a device; the kernel sends requests at once.

    Args:
        index: N of /dev/nbdN; None for any that is free, chosen by the kernel without a race.
        sockets: descriptors of the kernel's ends, connected stream sockets.
        size: bytes.
        block_size: bytes.
        flags: the NBD specification's transmission flags.
        timeout: seconds after which the kernel drops a connection that does not answer; 0 for none.
        dead_conn_timeout: seconds for which requests wait when no connection is left; 0 fails them.
        identity: the backend identifier, which :func:`reconfigure` has to repeat; /sys shows it
            (``backend``).

    Returns:
        The index.

    Raises:
        OSError: EBUSY if it is attached, or merely open; EPERM without CAP_SYS_ADMIN; ENOENT where
            this network namespace has no NBD family.

    """
    attributes = [
        _number(Attribute.SIZE_BYTES, size, 8),
        _number(Attribute.BLOCK_SIZE_BYTES, block_size, 8),
        _number(Attribute.SERVER_FLAGS, flags, 8),
        _sockets(sockets),
        *_identity(identity),
    ]
    if timeout:
        attributes.append(_number(Attribute.TIMEOUT, timeout, 8))
    if dead_conn_timeout:
        attributes.append(_number(Attribute.DEAD_CONN_TIMEOUT, dead_conn_timeout, 8))
    if index is not None:
        attributes.append(_number(Attribute.INDEX, index, 4))
    answer = _command(NetlinkCommand.CONNECT, *attributes)
    return parse_u32(answer, Attribute.INDEX)


def reconfigure(
    index: int,
    identity: str | None,
    *,
    size: int | None = None,
    client_flags: ClientFlag | None = None,
    dead_conn_timeout: int | None = None,
    sockets: Sequence[int] = (),
) -> None:
    """Change the given settings of a device that was attached by netlink.

    Args:
        index: N of /dev/nbdN.
        identity: that with which it was attached; None if without.
        size: bytes.
        client_flags: how the kernel treats it.
        dead_conn_timeout: as for :func:`connect`.
        sockets: each replaces a dead connection. If none is dead, the kernel drops the socket
            without an error (nbd_reconnect_socket).

    Raises:
        OSError: EINVAL if the identity differs, or nothing is attached there by netlink; else as
            for :func:`disconnect`.

    """
    attributes = [_number(Attribute.INDEX, index, 4), *_identity(identity)]
    if size is not None:
        attributes.append(_number(Attribute.SIZE_BYTES, size, 8))
    if client_flags is not None:
        attributes.append(_number(Attribute.CLIENT_FLAGS, client_flags, 8))
    if dead_conn_timeout is not None:
        attributes.append(_number(Attribute.DEAD_CONN_TIMEOUT, dead_conn_timeout, 8))
    if sockets:
        attributes.append(_sockets(sockets))
    _command(NetlinkCommand.RECONFIGURE, *attributes)


def offer_connection(
    index: int, identity: str | None, ours: socket.socket, theirs: socket.socket
) -> bool:
    """Offer the kernel a connection in place of a dead one: reconnect a device.

    Args:
        index: N of /dev/nbdN.
        identity: as for :func:`reconfigure`.
        ours: the server's end of a socket pair.
        theirs: the kernel's end, which is closed here.

    Returns:
        True if the kernel has taken it; it sends requests at once. False if no connection is dead.

    Raises:
        OSError: as for :func:`reconfigure`.

    """
    with theirs:
        reconfigure(index, identity, sockets=[theirs.fileno()])
    # The kernel's end is closed by now, unless the kernel has kept it.
    poll = select.poll()
    poll.register(ours, select.POLLRDHUP)
    return not poll.poll(0)


def disconnect(index: int, timeout: float = TIMEOUT) -> None:
    """Disconnect a device at once: requests in flight fail with EIO, dirty pages are dropped.

    Args:
        index: N of /dev/nbdN.
        timeout: seconds to wait for the kernel's answer.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN, EINVAL for an unknown index, ENOENT where this
            network namespace has no NBD family.
        TimeoutError: the kernel did not answer.

    """
    _command(NetlinkCommand.DISCONNECT, _number(Attribute.INDEX, index, 4), timeout=timeout)


def is_available() -> bool:
    """Return whether this network namespace has the NBD family; may load the kernel's module."""
    try:
        with open_socket() as sock:
            look_up(sock)
    except OSError:
        return False
    return True


def _command(command: NetlinkCommand, *attributes: bytes, timeout: float = TIMEOUT) -> bytes:
    """Send a command to the family; return the attributes of the answer."""
    # A socket for each command: two users of one socket would receive each other's answers.
    with open_socket(timeout) as sock:
        return _call(sock, look_up(sock)[0], command, b"".join(attributes))


def open_socket(timeout: float = TIMEOUT) -> socket.socket:
    """Open a netlink socket; ``timeout`` in seconds is for the kernel to answer."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
    sock.settimeout(timeout)
    # Have a refusal answered with its reason in words, in place of a copy of the message.
    sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
    sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
    sock.bind((0, 0))
    return sock


def look_up(sock: socket.socket) -> tuple[int, bytes]:
    """Return the family's number, and all attributes of its description."""
    name = _attribute(CTRL_ATTR_FAMILY_NAME, b"nbd\0")
    answer = _call(sock, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name)
    return int(_NUMBER[2].unpack(dict(parse_attributes(answer))[CTRL_ATTR_FAMILY_ID])[0]), answer


def _call(sock: socket.socket, family: int, command: int, attributes: bytes) -> bytes:
    """Send a command, wait until the kernel acknowledges it; return its answer's attributes."""
    body = GENERIC.pack(command, 1, 0) + attributes
    length = _MESSAGE.size + len(body)
    sock.send(_MESSAGE.pack(length, family, NLM_F_REQUEST_ACK, 1, 0) + body)
    answer = b""
    while True:
        for kind, flags, body in parse_messages(sock.recv(65536)):
            if kind != NLMSG_ERROR:
                answer = body[GENERIC.size :]
                continue
            number = -struct.unpack_from("=i", body)[0]
            if number:
                raise OSError(number, f"NBD netlink: {_reason(number, flags, body)}")
            return answer


def parse_messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the messages of one datagram: type, flags and what follows the header."""
    while data:
        length, kind, flags = struct.unpack_from("=IHH", data)
        if length < _MESSAGE.size:
            raise OSError(errno.EBADMSG, "NBD netlink: malformed answer")
        yield kind, flags, data[_MESSAGE.size : length]
        data = data[(length + 3) & ~3 :]


def _reason(number: int, flags: int, body: bytes) -> str:
    """Format an error number, with the kernel's own message if there is one."""
    reason = os.strerror(number)
    if flags & NLM_F_ACK_TLVS:
        message = dict(parse_attributes(body[4 + _MESSAGE.size :])).get(NLMSGERR_ATTR_MSG)
        if message:
            reason += f" ({message.rstrip(bytes(1)).decode(errors='replace')})"
    return reason


def _sockets(sockets: Sequence[int]) -> bytes:
    items = [_attribute(SOCK_ITEM | NLA_F_NESTED, _number(SOCK_FD, sock, 4)) for sock in sockets]
    return _attribute(Attribute.SOCKETS | NLA_F_NESTED, b"".join(items))


def _identity(identity: str | None) -> list[bytes]:
    if identity is None:
        return []
    return [_attribute(Attribute.BACKEND_IDENTIFIER, identity.encode() + b"\0")]


def _number(kind: int, value: int, size: int) -> bytes:
    return _attribute(kind, _NUMBER[size].pack(value))


def _attribute(kind: int, value: bytes) -> bytes:
    """Serialize one attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def parse_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Parse attributes: yield the type and value of each."""
    while data:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            raise OSError(errno.EBADMSG, "NBD netlink: malformed answer")
        yield kind & NLA_TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def parse_u32(data: bytes, kind: int) -> int:
    """Parse attributes: return the one of this type, a 32-bit number."""
    return int(_NUMBER[4].unpack(dict(parse_attributes(data))[kind])[0])
