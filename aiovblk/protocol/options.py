"""Handshake messages on the wire: greeting, options, option replies, and their data.

Rules from the specification's "Fixed newstyle negotiation":

* The server sends a greeting, the client its flags, then one option after the other. Each option
  has a length, so that an unknown one can be skipped.
* All strings are UTF-8 of at most 4096 bytes, preceded by their length, not terminated.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ProtocolError
from .constants import MAX_PAYLOAD, ReplyMode, TransmissionFlag
from .handshake_constants import BASE_ALLOCATION, MAX_STRING, Info

NBD_MAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x3E889045565A9
OLDSTYLE_MAGIC = 0x00420281861253

GREETING = struct.Struct(">QQH")
"""The server's greeting: NBDMAGIC, IHAVEOPT, handshake flags."""

CLIENT_FLAGS = struct.Struct(">I")

OPTION = struct.Struct(">QII")
"""Option header: IHAVEOPT, option, length of its data."""

OPTION_REPLY = struct.Struct(">QIII")
"""Option reply header: magic, option, reply type, length of its data."""

EXPORT_NAME_REPLY = struct.Struct(">QH")
"""Size and transmission flags; 124 zero bytes follow unless NO_ZEROES was negotiated."""

PADDING = 124

MAX_QUERIES = 1024
"""Maximum number of metadata context queries in one option."""

INFO_EXPORT = struct.Struct(">HQH")
INFO_BLOCK_SIZE = struct.Struct(">HIII")
U16 = struct.Struct(">H")
U32 = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """An export as a server describes it; sizes in bytes."""

    size: int
    flags: TransmissionFlag
    minimum_block: int = 1
    preferred_block: int = 4096
    maximum_payload: int = MAX_PAYLOAD
    description: str = ""


@dataclass(frozen=True, slots=True)
class NegotiationResult:
    """The result of a handshake: the export, and what was negotiated for its transmission phase."""

    name: str
    """Name of the export."""
    info: ExportInfo
    mode: ReplyMode = ReplyMode.SIMPLE
    contexts: Mapping[str, int] = field(default_factory=dict)
    """The metadata contexts that were selected: the id of each in block status replies."""
    offered_contexts: tuple[str, ...] | None = None
    """All that the server has listed, if the client has asked for that; None: it has not."""

    @property
    def allocation_context_id(self) -> int | None:
        """The context id of ``base:allocation``; None if it was not negotiated."""
        return self.contexts.get(BASE_ALLOCATION)


class OptionReader:
    """Parse the data of an option, or of an option reply, field by field.

    Raises:
        ProtocolError: from each method, if the data ends too early or a string is invalid.

    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """Read the next fixed-size fields."""
        return layout.unpack(self.read_bytes(layout.size))

    def string(self) -> str:
        """Read the next string, which is preceded by its length."""
        (length,) = self.unpack(U32)
        if length > MAX_STRING:
            raise ProtocolError(f"a string has {length} bytes; at most {MAX_STRING} are allowed")
        return decode(self.read_bytes(length))

    def rest(self) -> bytes:
        """Read all remaining bytes."""
        return self.read_bytes(len(self._data) - self._position)

    def read_bytes(self, count: int) -> bytes:
        """Read the next ``count`` bytes."""
        taken = self._data[self._position : self._position + count]
        if len(taken) < count:
            raise ProtocolError("the data of an option ends too early")
        self._position += count
        return taken

    def expect_end(self) -> None:
        """Check that no bytes remain."""
        if self._position != len(self._data):
            raise ProtocolError("the data of an option is longer than its contents")


def decode(data: bytes) -> str:
    """Decode a string of the wire.

    Raises:
        ProtocolError: it is longer than 4096 bytes, or not UTF-8.

    """
    if len(data) > MAX_STRING:
        raise ProtocolError(f"a string has {len(data)} bytes; at most {MAX_STRING} are allowed")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProtocolError("a string is not UTF-8") from None


def serialize_string(text: str) -> bytes:
    """Serialize a string, preceded by its length."""
    data = text.encode()
    return U32.pack(len(data)) + data


def serialize_option(option: int, data: bytes = b"") -> bytes:
    """Serialize one option of the client."""
    return OPTION.pack(IHAVEOPT, option, len(data)) + data


def serialize_option_reply(option: int, reply: int, data: bytes = b"") -> bytes:
    """Serialize one option reply of the server."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def serialize_info_request(name: str, wanted: Sequence[Info]) -> bytes:
    """Serialize the data of INFO or GO."""
    types = b"".join(map(U16.pack, wanted))
    return serialize_string(name) + U16.pack(len(wanted)) + types


def parse_info_request(data: bytes) -> tuple[str, list[int]]:
    """Parse the data of INFO or GO: the export's name, and the information types asked for.

    Raises:
        ProtocolError: the data is malformed.

    """
    fields = OptionReader(data)
    name = fields.string()
    (count,) = fields.unpack(U16)
    # In one call: there may be 32,000 of them, and the server has other clients.
    wanted = [each for (each,) in U16.iter_unpack(fields.read_bytes(count * U16.size))]
    fields.expect_end()
    return name, wanted


def serialize_context_request(name: str, queries: Sequence[str]) -> bytes:
    """Serialize the data of LIST_META_CONTEXT or SET_META_CONTEXT."""
    return b"".join(
        [serialize_string(name), U32.pack(len(queries)), *map(serialize_string, queries)]
    )


def parse_context_request(data: bytes) -> tuple[str, list[str]]:
    """Parse the data of LIST_META_CONTEXT or SET_META_CONTEXT: the export's name, and the queries.

    Raises:
        ProtocolError: the data is malformed, or has more than :data:`MAX_QUERIES` queries.

    """
    fields = OptionReader(data)
    name = fields.string()
    (count,) = fields.unpack(U32)
    if count > MAX_QUERIES:
        raise ProtocolError(f"{count} metadata context queries; at most {MAX_QUERIES} are allowed")
    queries = [fields.string() for _ in range(count)]
    fields.expect_end()
    return name, queries
