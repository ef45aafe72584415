from __future__ import annotations

import errno
from dataclasses import fields, replace

import pytest

from aiovblk import ProtocolError
from aiovblk.protocol import (
    MAX_PAYLOAD,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    Command,
    CommandFlag,
    ReplyHeader,
    ReplyMode,
    Request,
    TransmissionFlag,
    errno_to_wire,
    parse_extended_request,
    parse_reply_header,
    parse_request,
    serialize_request,
)

REQUEST_BYTES = bytes.fromhex(
    "25609513"  # magic
    "0003"  # command flags: FUA and NO_HOLE
    "0006"  # type: WRITE_ZEROES
    "0123456789abcdef"  # cookie
    "00000050ffffe000"  # offset
    "fffff000"  # length
)
REQUEST = Request(3, 6, 0x0123456789ABCDEF, 0x50FFFFE000, 0xFFFFF000)

EXTENDED_BYTES = bytes.fromhex(
    "21e41c71"  # magic
    "0003"  # command flags: FUA and NO_HOLE
    "0006"  # type: WRITE_ZEROES
    "0123456789abcdef"  # cookie
    "00000050ffffe000"  # offset
    "0000001122334000"  # length
)
EXTENDED_REQUEST = replace(REQUEST, length=0x1122334000)

REPLY_BYTES = bytes.fromhex("67446698 0000001c fedcba9876543210")


def test_request_parses_from_literal_bytes() -> None:
    assert parse_request(REQUEST_BYTES) == REQUEST


def test_request_serializes_to_literal_bytes() -> None:
    assert serialize_request(REQUEST) == REQUEST_BYTES


def test_extended_request_parses_from_literal_bytes() -> None:
    assert parse_extended_request(EXTENDED_BYTES) == EXTENDED_REQUEST
    assert parse_extended_request(memoryview(b"junk" + EXTENDED_BYTES), 4) == EXTENDED_REQUEST


def test_extended_request_serializes_to_literal_bytes() -> None:
    assert serialize_request(EXTENDED_REQUEST, ReplyMode.EXTENDED) == EXTENDED_BYTES


def test_extended_write_announces_its_payload() -> None:
    write = Request(int(CommandFlag.FUA), Command.WRITE, 1, 0, 512)
    for mode in (ReplyMode.SIMPLE, ReplyMode.STRUCTURED):
        assert serialize_request(write, mode)[4:8] == b"\0\1\0\1"
    assert serialize_request(write, ReplyMode.EXTENDED)[4:8] == b"\0\x21\0\1"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_request_parses_at_a_position_in_any_buffer(kind: type) -> None:
    assert parse_request(kind(b"junk" + REQUEST_BYTES + b"rest"), 4) == REQUEST


@pytest.mark.parametrize("mode", ReplyMode)
@pytest.mark.parametrize("field", [each.name for each in fields(Request) if each.compare])
def test_each_byte_of_a_request_belongs_to_one_field(field: str, mode: ReplyMode) -> None:
    parse, length = parse_request, 4
    if mode is ReplyMode.EXTENDED:
        parse, length = parse_extended_request, 8
    places = {"flags": (4, 2), "type": (6, 2), "cookie": (8, 8), "offset": (16, 8)}
    first, size = places.get(field, (24, length))
    blank = Request(0, 0, 0, 0, 0)
    for place in range(size):
        message = bytearray(serialize_request(blank, mode))
        assert len(message) == 24 + length
        message[first + place] = 0x81
        expected = replace(blank, **{field: 0x81 << 8 * (size - 1 - place)})
        assert parse(message) == expected
        assert serialize_request(expected, mode) == message


@pytest.mark.parametrize("place", range(4))
def test_request_with_one_wrong_magic_byte_is_refused(place: int) -> None:
    message = bytearray(REQUEST_BYTES)
    message[place] ^= 0xFF
    with pytest.raises(ProtocolError, match="expected a request"):
        parse_request(message)
    message = bytearray(EXTENDED_BYTES)
    message[place] ^= 0xFF
    with pytest.raises(ProtocolError, match="expected an extended request"):
        parse_extended_request(message)


def test_request_of_the_other_size_is_refused() -> None:
    with pytest.raises(ProtocolError, match="0x25609513"):
        parse_extended_request(REQUEST_BYTES + bytes(4))
    with pytest.raises(ProtocolError, match="0x21e41c71"):
        parse_request(EXTENDED_BYTES)


def test_simple_reply_parses_from_literal_bytes() -> None:
    header = ReplyHeader(0xFEDCBA9876543210, None, True, 0, errno.ENOSPC)
    assert parse_reply_header(ReplyMode.SIMPLE, REPLY_BYTES) == header
    assert parse_reply_header(ReplyMode.SIMPLE, b"\0" + REPLY_BYTES, 1) == header


def test_simple_reply_serializes_to_literal_bytes() -> None:
    assert SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, errno.ENOSPC, 0xFEDCBA9876543210) == REPLY_BYTES


@pytest.mark.parametrize("place", range(4))
def test_simple_reply_with_one_wrong_magic_byte_is_refused(place: int) -> None:
    message = bytearray(REPLY_BYTES)
    message[place] ^= 0xFF
    with pytest.raises(ProtocolError, match="expected a reply"):
        parse_reply_header(ReplyMode.SIMPLE, message)


def test_structured_reply_is_no_simple_reply() -> None:
    with pytest.raises(ProtocolError, match="0x668e33ef"):
        parse_reply_header(ReplyMode.SIMPLE, bytes.fromhex("668e33ef") + bytes(12))


@pytest.mark.parametrize("command", Command)
@pytest.mark.parametrize("flag", CommandFlag)
def test_a_flag_never_changes_the_command(command: Command, flag: CommandFlag) -> None:
    request = parse_request(serialize_request(Request(flag, command, 1, 2, 3)))
    assert (request.flags, request.type) == (flag, command)


def test_numbers_are_those_of_the_specification() -> None:
    assert [int(command) for command in Command] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert [int(flag) for flag in CommandFlag] == [1, 2, 4, 8, 16, 32]
    assert [int(flag) for flag in TransmissionFlag] == [1 << bit for bit in range(13)]


@pytest.mark.parametrize("command", set(Command) - {Command.WRITE})
def test_only_write_has_a_payload(command: Command) -> None:
    assert Request(0, command, 1, 0, 2**32 - 4096).payload_length() == 0


def test_unknown_command_has_no_payload() -> None:
    assert Request(0, 0xFFFF, 1, 0, 4096).payload_length() == 0


@pytest.mark.parametrize("command", [*(set(Command) - {Command.WRITE}), 0xFFFF])
def test_payload_len_announces_a_payload_in_extended_headers_only(command: int) -> None:
    request = Request(CommandFlag.PAYLOAD_LEN, command, 1, 0, 16)
    assert request.payload_length() == 0
    assert request.payload_length(extended=True) == 16
    assert replace(request, flags=0).payload_length(extended=True) == 0
    with pytest.raises(ProtocolError, match="33554433 bytes"):
        replace(request, length=MAX_PAYLOAD + 1).payload_length(extended=True)


@pytest.mark.parametrize("length", [0, 1, 4096, MAX_PAYLOAD])
def test_write_has_a_payload_of_its_length(length: int) -> None:
    assert Request(0, Command.WRITE, 1, 0, length).payload_length() == length


@pytest.mark.parametrize("length", [MAX_PAYLOAD + 1, 2**32 - 1])
def test_write_of_more_than_32_mib_is_a_protocol_error(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"{length} bytes with one request"):
        _ = Request(0, Command.WRITE, 1, 0, length).payload_length()


@pytest.mark.parametrize(
    ("number", "on_the_wire"),
    [
        (errno.EPERM, 1),
        (errno.EIO, 5),
        (errno.ENOMEM, 12),
        (errno.EINVAL, 22),
        (errno.ENOSPC, 28),
        (errno.EOVERFLOW, 75),
        (errno.EOPNOTSUPP, 95),
        (errno.ESHUTDOWN, 108),
        (errno.EACCES, 1),
        (errno.EROFS, 1),
        (errno.EDQUOT, 28),
        (errno.EFBIG, 28),
        (errno.ETIMEDOUT, 5),
        (999, 5),
        (-1, 5),
        (0, 5),
        (None, 5),
    ],
)
def test_system_error_becomes_a_value_of_the_specification(
    number: int | None, on_the_wire: int
) -> None:
    assert errno_to_wire(number) == on_the_wire
