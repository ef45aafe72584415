"""What options and their replies carry, against literal bytes."""

from __future__ import annotations

import pytest

from aiovblk import ProtocolError
from aiovblk.protocol import Info, Option, OptionReply
from aiovblk.protocol.options import (
    CLIENT_FLAGS,
    EXPORT_NAME_REPLY,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    MAX_QUERIES,
    OPTION,
    OPTION_REPLY,
    U32,
    OptionReader,
    decode,
    parse_context_request,
    parse_info_request,
    serialize_context_request,
    serialize_info_request,
    serialize_option,
    serialize_option_reply,
    serialize_string,
)

INFO_REQUEST = bytes.fromhex("00000003 c3a978 0002 0001 0003")
CONTEXT_REQUEST = bytes.fromhex("00000001 64 00000002 00000003 783a79 00000000")


def test_option_has_its_length_before_its_data() -> None:
    assert serialize_option(Option.GO, b"abc") == b"IHAVEOPT" + bytes.fromhex(
        "00000007 00000003 616263"
    )
    assert serialize_option(Option.LIST) == b"IHAVEOPT" + bytes.fromhex("00000003 00000000")


def test_option_reply_has_its_length_before_its_data() -> None:
    assert serialize_option_reply(Option.GO, OptionReply.ERR_UNKNOWN, b"no") == bytes.fromhex(
        "0003e889045565a9 00000007 80000006 00000002 6e6f"
    )


def test_layouts_have_the_sizes_of_the_specification() -> None:
    assert [
        each.size for each in (GREETING, CLIENT_FLAGS, OPTION, OPTION_REPLY, EXPORT_NAME_REPLY, U32)
    ] == [18, 4, 16, 20, 10, 4]
    assert (INFO_EXPORT.size, INFO_BLOCK_SIZE.size) == (12, 14)


def test_numbers_are_those_of_the_specification() -> None:
    assert list(map(int, Option)) == list(range(1, 12))
    assert [int(kind) for kind in OptionReply if kind < 1 << 31] == [1, 2, 3, 4]
    assert [kind - (1 << 31) for kind in OptionReply if kind >= 1 << 31] == list(range(1, 11))
    assert list(map(int, Info)) == [0, 1, 2, 3]


def test_info_request_serializes_to_literal_bytes_and_back() -> None:
    assert serialize_info_request("éx", [Info.NAME, Info.BLOCK_SIZE]) == INFO_REQUEST
    assert parse_info_request(INFO_REQUEST) == ("éx", [1, 3])
    assert parse_info_request(bytes(6)) == ("", [])


def test_context_request_serializes_to_literal_bytes_and_back() -> None:
    assert serialize_context_request("d", ["x:y", ""]) == CONTEXT_REQUEST
    assert parse_context_request(CONTEXT_REQUEST) == ("d", ["x:y", ""])
    assert parse_context_request(bytes(8)) == ("", [])


@pytest.mark.parametrize(
    ("parse", "data"),
    [(parse_info_request, INFO_REQUEST), (parse_context_request, CONTEXT_REQUEST)],
)
def test_request_that_is_cut_or_longer_than_it_says_is_a_protocol_error(
    parse: type, data: bytes
) -> None:
    for cut in range(len(data)):
        with pytest.raises(ProtocolError, match="too early"):
            parse(data[:cut])
    with pytest.raises(ProtocolError, match="longer than"):
        parse(data + b"\0")


@pytest.mark.parametrize("length", [4097, 2**31, 2**32 - 1])
def test_string_of_more_than_4096_bytes_is_a_protocol_error(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"{length} bytes"):
        OptionReader(length.to_bytes(4) + b"x").string()


def test_string_of_4096_bytes_is_taken() -> None:
    text = "é" * 2048
    fields = OptionReader(serialize_string(text) + b"rest")
    assert fields.string() == text
    assert fields.rest() == b"rest"
    fields.expect_end()


def test_length_of_a_string_counts_bytes() -> None:
    assert serialize_string("é") == bytes.fromhex("00000002 c3a9")
    with pytest.raises(ProtocolError, match="4098 bytes"):
        decode("é".encode() * 2049)


@pytest.mark.parametrize(
    "data", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"]
)
def test_string_that_is_not_utf_8_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="not UTF-8"):
        decode(data)


def test_count_that_lies_is_found_out_by_the_end_of_the_data() -> None:
    with pytest.raises(ProtocolError, match="too early"):
        parse_context_request(bytes(4) + (1000).to_bytes(4) + bytes(3999))


def test_more_queries_than_are_looked_at_are_a_protocol_error() -> None:
    parse_context_request(serialize_context_request("", [""] * MAX_QUERIES))
    with pytest.raises(ProtocolError, match="at most 1024"):
        parse_context_request(serialize_context_request("", [""] * (MAX_QUERIES + 1)))
