"""Commands and structures of the kernel's ublk driver: include/uapi/linux/ublk_cmd.h."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from ..device import BlockDevice

QUEUE_DEPTH = 128
"""Requests that may be in flight: as many as NBD has on one connection."""

MAX_IO_BYTES = 1 << 20
"""Bytes of the largest read or write of a device whose data is copied with USER_COPY; the default
of :attr:`.RequestQueue.max_sectors_kb`, which may lower it."""

MAX_TAG_BUFFER = 512 << 10
"""The same where each tag has a buffer of its own: 64 MiB of address space for all, of which only
what is used takes memory."""

SECTOR = 512
"""Bytes of the sectors that the driver counts in, whatever the block size."""

_MAX_SECTORS = (1 << 32) - 1 >> 9  # of a discard or of zeroes


class ControlCommand(IntEnum):
    """Control commands, for /dev/ublk-control; the number is that of the ioctl without its size."""

    ADD_DEV = 0x04
    DEL_DEV = 0x05
    START_DEV = 0x06
    STOP_DEV = 0x07
    SET_PARAMS = 0x08
    START_USER_RECOVERY = 0x10
    END_USER_RECOVERY = 0x11
    GET_DEV_INFO2 = 0x12
    GET_FEATURES = 0x13
    DEL_DEV_ASYNC = 0x14
    UPDATE_SIZE = 0x15
    TRY_STOP_DEV = 0x17

    @property
    def number(self) -> int:
        """The number as ioctls are encoded: direction, size, type and command."""
        direction = _READ if self in _READING else _READ_WRITE
        return direction << 30 | 32 << 16 | ord("u") << 8 | self


_READ, _READ_WRITE = 2, 3
_READING = {ControlCommand.GET_DEV_INFO2, ControlCommand.GET_FEATURES, ControlCommand.DEL_DEV_ASYNC}

FETCH_REQ = _READ_WRITE << 30 | 16 << 16 | ord("u") << 8 | 0x20
"""Command for /dev/ublkcN: wait for a request."""

COMMIT_AND_FETCH_REQ = _READ_WRITE << 30 | 16 << 16 | ord("u") << 8 | 0x21
"""Command for /dev/ublkcN: complete a request, and wait for the next one."""


class Feature(IntFlag):
    """What a driver can do, and what a device was made with (UBLK_F_*)."""

    USER_RECOVERY = 1 << 3
    USER_RECOVERY_REISSUE = 1 << 4
    UNPRIVILEGED_DEV = 1 << 5
    CMD_IOCTL_ENCODE = 1 << 6
    USER_COPY = 1 << 7
    UPDATE_SIZE = 1 << 10
    QUIESCE = 1 << 12
    SAFE_STOP_DEV = 1 << 17


RECOVERY = Feature.USER_RECOVERY | Feature.USER_RECOVERY_REISSUE
"""Flags of a device that survives its server: requests wait for the next one, and those that were
in flight are sent to it again."""


class State(IntEnum):
    """The state of a device (UBLK_S_DEV_*)."""

    DEAD = 0
    LIVE = 1
    QUIESCED = 2
    FAIL_IO = 3


class Operation(IntEnum):
    """What a request is (UBLK_IO_OP_*)."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3
    WRITE_ZEROES = 5


OPERATION_MASK = 0xFF
IO_FUA = 1 << 13
"""Flag of a request: UBLK_IO_F_FUA."""
IO_NOUNMAP = 1 << 15
"""Flag of a WRITE_ZEROES: UBLK_IO_F_NOUNMAP."""

CTRL_COMMAND = struct.Struct("<IHHQQHHI")
"""struct ublksrv_ctrl_cmd: device, queue, length and address of a buffer, data, bytes of a path in
front of the buffer's content."""

IO_COMMAND = struct.Struct("<HHiQ")
"""struct ublksrv_io_cmd: queue, tag, result, address of a buffer."""

RESULT_OFFSET = 4
"""Bytes of an IO_COMMAND before its result."""

DESCRIPTOR_SIZE = 24
"""Bytes of struct ublksrv_io_desc: operation and flags, sectors, start sector, address."""

COPY_OFFSET = 0x80000000
"""Where the data of tag 0 is in /dev/ublkcN, for USER_COPY (UBLKSRV_IO_BUF_OFFSET)."""
COPY_TAG_SHIFT = 25
"""Bits of the offset below the tag (UBLK_TAG_OFF)."""

_DEVICE_INFO = struct.Struct("<4HIIiIQQIIQQ")
_ANY = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class UblkDeviceInfo:
    """What the driver knows of a device: struct ublksrv_ctrl_dev_info.

    Attributes:
        number: N of /dev/ublkbN; None before it is made, for any.
        depth: requests in flight at most.
        max_io: bytes of the largest read or write.
        flags: what it was made with.
        state: whether it has a server.
        server: the process that serves it; -1 for none.
        owner: user id of the process that made it.
        mark: 64 bits that the driver only keeps (``ublksrv_flags``): here, of the identity
            (:func:`.identities.mark_of`); 0 without one.

    """

    number: int | None
    depth: int = QUEUE_DEPTH
    max_io: int = MAX_IO_BYTES
    flags: Feature
    state: State | int = State.DEAD
    server: int = -1
    owner: int = 0
    mark: int = 0

    SIZE = _DEVICE_INFO.size

    def pack(self) -> bytes:
        """Return it as ADD_DEV takes it, with one queue."""
        number = _ANY if self.number is None else self.number
        values = 1, self.depth, 0, 0, self.max_io, number, self.server, 0, int(self.flags)
        return _DEVICE_INFO.pack(*values, self.mark, 0, 0, 0, 0)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Return what the driver has answered."""
        fields = _DEVICE_INFO.unpack(data[: _DEVICE_INFO.size])
        state = fields[2]
        return cls(
            depth=fields[1],
            state=State(state) if state in list(State) else state,
            max_io=fields[4],
            number=fields[5],
            server=fields[6],
            flags=Feature(fields[8]),
            mark=fields[9],
            owner=fields[10],
        )


_PARAMS_HEADER = struct.Struct("<II")  # struct ublk_params: its length, and which parts there are
_BASIC = struct.Struct("<I4BIIQQ")
_DISCARD = struct.Struct("<IIIIHH")
_TYPE_BASIC, _TYPE_DISCARD = 1, 2
_READ_ONLY, _ROTATIONAL, _VOLATILE_CACHE, _FUA = 1, 2, 4, 8  # UBLK_ATTR_*


def parameters(device: BlockDevice, max_io: int) -> bytes:
    """Return the parameters of a device as SET_PARAMS takes them: struct ublk_params.

    Args:
        device: its size, its block size and what it can do.
        max_io: bytes of the largest read or write.

    """
    from ..device import can  # not above: the watchdog process has no other part of the package

    shift = device.block_size.bit_length() - 1
    attributes = _READ_ONLY if device.read_only else 0
    attributes |= _ROTATIONAL if device.rotational else 0
    if can(device, "flush"):
        attributes |= _VOLATILE_CACHE | _FUA
    sectors = device.size // SECTOR
    basic = _BASIC.pack(attributes, shift, shift, 0, 0, max_io // SECTOR, 0, sectors, 0)
    discards = _MAX_SECTORS if can(device, "trim") else 0
    # Without write_zeroes() of its own a device gets zeroes by write(), as over NBD.
    zeroes = 0 if device.read_only else _MAX_SECTORS
    discard = _DISCARD.pack(0, device.block_size, discards, zeroes, 1 if discards else 0, 0)
    body = basic + discard
    header = _PARAMS_HEADER.pack(_PARAMS_HEADER.size + len(body), _TYPE_BASIC | _TYPE_DISCARD)
    return header + body
