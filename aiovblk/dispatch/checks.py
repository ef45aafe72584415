"""What a device can do, told in the protocol's words, and which requests follow from that."""

from __future__ import annotations

import errno

from ..device import BlockDevice, overrides
from ..protocol import MAX_PAYLOAD, Command, CommandFlag, Request, TransmissionFlag

# Plain ints: comparing members of an IntEnum costs as much as the rest of a check.
_READ, _WRITE, _FLUSH = int(Command.READ), int(Command.WRITE), int(Command.FLUSH)
_TRIM, _WRITE_ZEROES = int(Command.TRIM), int(Command.WRITE_ZEROES)
_FUA, _NO_HOLE = int(CommandFlag.FUA), int(CommandFlag.NO_HOLE)

# "If the server has advertised NBD_FLAG_SEND_FUA, it MUST accept FUA on any command."
_ALLOWED_FLAGS = {
    _READ: _FUA,
    _WRITE: _FUA,
    _FLUSH: _FUA,
    _TRIM: _FUA,
    _WRITE_ZEROES: _FUA | _NO_HOLE,
}

# Beyond the end: the specification asks for ENOSPC where data would be stored.
_BEYOND_END = {_WRITE: errno.ENOSPC, _WRITE_ZEROES: errno.ENOSPC}


def transmission_flags(device: BlockDevice) -> TransmissionFlag:
    """What the handlers that ``device`` overrides, and its declarations, say that it can do."""
    flags = TransmissionFlag.HAS_FLAGS
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


def refusal(request: Request, size: int, block_mask: int, read_only: bool) -> int:
    """Why a request may not reach a handler, as an error value; 0 if it may.

    Args:
        request: as it came.
        size: bytes of the device.
        block_mask: its block size, less one.
        read_only: whether it refuses whatever would change it.

    """
    flags, command, _, offset, length = request
    allowed = _ALLOWED_FLAGS.get(command)
    if allowed is None or flags & ~allowed:
        return errno.EINVAL
    if command == _FLUSH:
        # "Both offset and length are reserved, and MUST be set to zero."
        return errno.EINVAL if offset or length else 0
    if read_only and command != _READ:
        return errno.EPERM
    if not length or (offset | length) & block_mask:
        return errno.EINVAL
    if offset + length > size:
        return _BEYOND_END.get(command, errno.EINVAL)
    if command == _READ and length > MAX_PAYLOAD:
        return errno.EINVAL
    return 0
