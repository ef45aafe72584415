"""Transmission flags from a device's capabilities, and validation of requests against them.

Which operations a device supports is decided in :func:`aiovblk.device.can`.
"""

from __future__ import annotations

import errno

from ..device import BlockDevice, can
from ..protocol import (
    MAX_PAYLOAD,
    Command,
    CommandFlag,
    ExportInfo,
    NegotiationResult,
    Request,
    TransmissionFlag,
)
from .negotiated_commands import allow_negotiated

# Plain ints: comparing members of an IntEnum costs as much as the rest of a check. And the
# complement of an IntFlag lacks the bits that have no name: those would never be refused.
_READ, _WRITE, _FLUSH = int(Command.READ), int(Command.WRITE), int(Command.FLUSH)
_TRIM, _WRITE_ZEROES = int(Command.TRIM), int(Command.WRITE_ZEROES)
_FUA, _NO_HOLE = int(CommandFlag.FUA), int(CommandFlag.NO_HOLE)

# Commands that are accepted whether advertised or not, with their allowed command flags. Optional
# ones have a default in BlockDevice; Linux 6.12 sends WRITE_ZEROES without the transmission flag.
# "If the server has advertised NBD_FLAG_SEND_FUA, it MUST accept FUA on any command."
_ALWAYS_ALLOWED = {
    _READ: _FUA,
    _WRITE: _FUA,
    _FLUSH: _FUA,
    _TRIM: _FUA,
    _WRITE_ZEROES: _FUA | _NO_HOLE,
}

_CHANGES = frozenset({_WRITE, _TRIM, _WRITE_ZEROES})

# Errors for a range beyond the end: the specification has ENOSPC where data would be stored.
_BEYOND_END = {_WRITE: errno.ENOSPC, _WRITE_ZEROES: errno.ENOSPC}


def transmission_flags(device: BlockDevice, *, multi_conn: bool = False) -> TransmissionFlag:
    """Return the transmission flags that advertise a device's capabilities and declarations.

    Args:
        device: the device to be served.
        multi_conn: whether a flush on one connection covers writes on the others (CAN_MULTI_CONN);
            that depends on how connections share the device, not on the device alone.

    """
    flags = TransmissionFlag.HAS_FLAGS
    if multi_conn:
        flags |= TransmissionFlag.CAN_MULTI_CONN
    if device.read_only:
        flags |= TransmissionFlag.READ_ONLY
    if device.rotational:
        flags |= TransmissionFlag.ROTATIONAL
    if can(device, "flush"):
        flags |= TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA
    if can(device, "trim"):
        flags |= TransmissionFlag.SEND_TRIM
    if can(device, "write_zeroes"):
        flags |= TransmissionFlag.SEND_WRITE_ZEROES
    return flags


def kernel_negotiation(device: BlockDevice) -> NegotiationResult:
    """Return the fixed parameters of a kernel connection: the kernel has no handshake."""
    return NegotiationResult("", ExportInfo(device.size, transmission_flags(device)))


class RequestValidator:
    """Decide which requests may reach the handlers of a device on one connection.

    READ, WRITE, FLUSH, TRIM and WRITE_ZEROES are accepted whether advertised or not, what
    :mod:`.negotiated_commands` has only if it was advertised or negotiated.

    Args:
        device: the device that is served.
        negotiated: the result of the handshake.

    Attributes:
        size: bytes of the device; updated when it is resized.
        block_mask: the bits that offset and length must not have.
        read_only: whether writes are refused.

    """

    def __init__(self, device: BlockDevice, negotiated: NegotiationResult) -> None:
        self.size = device.size
        self.block_mask = device.block_size - 1
        self.read_only = TransmissionFlag.READ_ONLY in negotiated.info.flags
        self._allowed = dict(_ALWAYS_ALLOWED)
        allow_negotiated(self._allowed, negotiated)

    def error_for(self, request: Request) -> int:
        """Return the error for a request that must not reach a handler; 0 if it may."""
        command, offset, length = request.type, request.offset, request.length
        allowed = self._allowed.get(command)
        if allowed is None or request.flags & ~allowed:
            return errno.EINVAL
        if command == _FLUSH:
            # "Both offset and length are reserved, and MUST be set to zero."
            return errno.EINVAL if offset or length else 0
        if self.read_only and command in _CHANGES:
            return errno.EPERM
        if not length or (offset | length) & self.block_mask:
            return errno.EINVAL
        if offset + length > self.size:
            return _BEYOND_END.get(command, errno.EINVAL)
        if command == _READ and length > MAX_PAYLOAD:
            return errno.EINVAL
        return 0
