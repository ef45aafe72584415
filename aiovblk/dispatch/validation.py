"""What a device can do, told in the protocol's words, and which requests follow from that."""

from __future__ import annotations

import errno

from ..device import BlockDevice, overrides
from ..protocol import (
    MAX_PAYLOAD,
    Command,
    CommandFlag,
    ExportInfo,
    NegotiationResult,
    ReplyMode,
    Request,
    TransmissionFlag,
)

# Plain ints: comparing members of an IntEnum costs as much as the rest of a check. And the
# complement of an IntFlag lacks the bits that have no name: those would never be refused.
_READ, _WRITE, _FLUSH = int(Command.READ), int(Command.WRITE), int(Command.FLUSH)
_TRIM, _WRITE_ZEROES = int(Command.TRIM), int(Command.WRITE_ZEROES)
_CACHE, _BLOCK_STATUS = int(Command.CACHE), int(Command.BLOCK_STATUS)
_FUA, _NO_HOLE = int(CommandFlag.FUA), int(CommandFlag.NO_HOLE)
_DF, _PAYLOAD_LEN = int(CommandFlag.DF), int(CommandFlag.PAYLOAD_LEN)
_REQ_ONE, _FAST_ZERO = int(CommandFlag.REQ_ONE), int(CommandFlag.FAST_ZERO)

# "If the server has advertised NBD_FLAG_SEND_FUA, it MUST accept FUA on any command."
_ALWAYS_ALLOWED = {
    _READ: _FUA,
    _WRITE: _FUA,
    _FLUSH: _FUA,
    _TRIM: _FUA,
    _WRITE_ZEROES: _FUA | _NO_HOLE,
}

_CHANGES = frozenset({_WRITE, _TRIM, _WRITE_ZEROES})

# Beyond the end: the specification asks for ENOSPC where data would be stored.
_BEYOND_END = {_WRITE: errno.ENOSPC, _WRITE_ZEROES: errno.ENOSPC}


def transmission_flags(device: BlockDevice, *, multi_conn: bool = False) -> TransmissionFlag:
    """What the handlers that ``device`` overrides, and its declarations, tell the kernel.

    Args:
        device: what is served.
        multi_conn: whether several connections may be used as one; whoever makes them knows.

    """
    flags = TransmissionFlag.HAS_FLAGS
    if multi_conn:
        flags |= TransmissionFlag.CAN_MULTI_CONN
    if device.read_only:
        flags |= TransmissionFlag.READ_ONLY
    if device.rotational:
        flags |= TransmissionFlag.ROTATIONAL
    if overrides(device, BlockDevice.flush):
        flags |= TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA
    if overrides(device, BlockDevice.trim):
        flags |= TransmissionFlag.SEND_TRIM
    if overrides(device, BlockDevice.write_zeroes):
        flags |= TransmissionFlag.SEND_WRITE_ZEROES
    return flags


def kernel_negotiation(device: BlockDevice) -> NegotiationResult:
    """What the kernel is served by: nothing is negotiated with it."""
    return NegotiationResult("", ExportInfo(device.size, transmission_flags(device)))


class RequestValidator:
    """Which requests may reach the handlers of a device on one connection.

    What was told to the client is what it may ask for, and no more. Only WRITE_ZEROES is always
    taken, since Linux 6.12 sends it unasked.

    Attributes:
        size: bytes of the device; may change while it is served.

    """

    def __init__(self, device: BlockDevice, agreement: NegotiationResult) -> None:
        self.size = device.size
        self._block_mask = device.block_size - 1
        self._read_only = TransmissionFlag.READ_ONLY in agreement.info.flags
        self._allowed = dict(_ALWAYS_ALLOWED)
        if agreement.mode >= ReplyMode.STRUCTURED:
            self._allowed[_READ] |= _DF
        if agreement.mode >= ReplyMode.EXTENDED:
            self._allowed[_WRITE] |= _PAYLOAD_LEN
        if TransmissionFlag.SEND_FAST_ZERO in agreement.info.flags:
            self._allowed[_WRITE_ZEROES] |= _FAST_ZERO
        if TransmissionFlag.SEND_CACHE in agreement.info.flags:
            self._allowed[_CACHE] = _FUA
        if agreement.allocation_context_id is not None:
            self._allowed[_BLOCK_STATUS] = _FUA | _REQ_ONE

    def error_for(self, request: Request) -> int:
        """Why a request may not reach a handler, as an error value; 0 if it may."""
        command, offset, length = request.type, request.offset, request.length
        allowed = self._allowed.get(command)
        if allowed is None or request.flags & ~allowed:
            return errno.EINVAL
        if command == _FLUSH:
            # "Both offset and length are reserved, and MUST be set to zero."
            return errno.EINVAL if offset or length else 0
        if self._read_only and command in _CHANGES:
            return errno.EPERM
        if not length or (offset | length) & self._block_mask:
            return errno.EINVAL
        if offset + length > self.size:
            return _BEYOND_END.get(command, errno.EINVAL)
        if command == _READ and length > MAX_PAYLOAD:
            return errno.EINVAL
        return 0
