"""What a store says about itself."""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple, Self
from zlib import crc32

from ...device import BlockDevice

MAGIC = b"aiovblk\x00"
OPEN, CLEAN = 0, 1

# In the order of the attributes of Header, after the magic; then the checksum of all that.
_FIELDS = struct.Struct("<8sII4Q32sI")
_CHECKSUM = struct.Struct("<I")

SIZE = _FIELDS.size + _CHECKSUM.size


class CacheHeader(NamedTuple):
    """The contents of a store's header.

    Attributes:
        version: of the format.
        state: ``OPEN`` or ``CLEAN``.
        line_size: bytes.
        slots: how many there are.
        size: of the inner device, in bytes.
        block_size: of the inner device, in bytes.
        identity: a hash of what the user calls the inner device, or what that holds.
        table: the checksum of the table.

    """

    version: int
    state: int
    line_size: int
    slots: int
    size: int
    block_size: int
    identity: bytes
    table: int

    @classmethod
    def of(cls, inner: BlockDevice, identity: str, line_size: int, slots: int) -> Self:
        """The header of a store in use."""
        digest = hashlib.sha256(identity.encode()).digest()
        return cls(1, OPEN, line_size, slots, inner.size, inner.block_size, digest, 0)

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Read a header, if it is whole."""
        fields = data[: _FIELDS.size]
        if _CHECKSUM.unpack_from(data, _FIELDS.size) != (crc32(fields),):
            return None
        return cls(*_FIELDS.unpack(fields)[1:])

    def serialize(self) -> bytes:
        """The opposite of :meth:`parse`."""
        fields = _FIELDS.pack(MAGIC, *self)
        return fields + _CHECKSUM.pack(crc32(fields))

    def mismatch_reason(self, expected: Self) -> str | None:
        """What keeps the cache from being used where this header is expected, if anything does."""
        if self._replace(state=OPEN, table=0) != expected:
            return "it is not of what this device holds, or has other lines"
        if self.state != CLEAN:
            return "it was not closed in order"
        return None
