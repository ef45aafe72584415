"""Simple, structured and extended replies, against literal bytes."""

from __future__ import annotations

import errno

import pytest

from aiovblk import ProtocolError
from aiovblk.protocol import (
    MAX_PAYLOAD,
    SERIALIZERS,
    BlockStatus,
    BlockStatuses,
    ReplyContent,
    ReplyHeader,
    ReplyMode,
    ReplyType,
    Request,
    SparseData,
    parse_block_status,
    parse_error,
    parse_reply_header,
    reply_header_size,
)

SIMPLE, STRUCTURED, EXTENDED = ReplyMode

COOKIE = 0xFEDCBA9876543210
REQUEST = Request(0, 0, COOKIE, 0x1122334455667788, 8)

MAGIC = {STRUCTURED: "668e33ef", EXTENDED: "6e8a278c"}


def chunk(mode: ReplyMode, flags: str, kind: str, payload: str) -> bytes:
    """A chunk of the reply to REQUEST, from hexadecimal digits."""
    data = bytes.fromhex(payload)
    head = bytes.fromhex(f"{MAGIC[mode]} {flags} {kind} fedcba9876543210")
    if mode is EXTENDED:
        return head + bytes.fromhex("1122334455667788") + len(data).to_bytes(8) + data
    return head + len(data).to_bytes(4) + data


def serialize(mode: ReplyMode, error: int, content: ReplyContent = b"") -> bytes:
    return b"".join(SERIALIZERS[mode](REQUEST, error, content))


in_chunks = pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])

# What a server sends


@pytest.mark.parametrize("data", [b"", b"payload!"])
def test_simple_reply_is_a_header_and_its_payload(data: bytes) -> None:
    assert serialize(SIMPLE, 0, data) == bytes.fromhex("67446698 00000000 fedcba9876543210") + data


def test_simple_error_has_no_payload() -> None:
    assert serialize(SIMPLE, errno.ENOSPC) == bytes.fromhex("67446698 0000001c fedcba9876543210")


@in_chunks
def test_success_without_data_is_one_empty_chunk(mode: ReplyMode) -> None:
    assert serialize(mode, 0) == chunk(mode, "0001", "0000", "")


@in_chunks
def test_error_is_one_chunk_without_a_message(mode: ReplyMode) -> None:
    assert serialize(mode, errno.EIO) == chunk(mode, "0001", "8001", "00000005 0000")


@in_chunks
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_data_is_one_chunk_with_its_offset(mode: ReplyMode, kind: type) -> None:
    assert serialize(mode, 0, kind(b"\1\2\3\4\5\6\7\x08")) == chunk(
        mode, "0001", "0001", "1122334455667788 0102030405060708"
    )


@pytest.mark.parametrize("mode", ReplyMode)
def test_data_is_not_copied(mode: ReplyMode) -> None:
    data = memoryview(b"\1\2\3\4\5\6\7\x08")
    assert any(buffer is data for buffer in SERIALIZERS[mode](REQUEST, 0, data))


@in_chunks
@pytest.mark.parametrize(
    ("pieces", "chunks"),
    [
        ([8], [("0002", "1122334455667788 00000008")]),
        (
            [b"\xaa\xaa", 6],
            [("0001", "1122334455667788 aaaa"), ("0002", "112233445566778a 00000006")],
        ),
        (
            [3, b"\xbb", 4],
            [
                ("0002", "1122334455667788 00000003"),
                ("0001", "112233445566778b bb"),
                ("0002", "112233445566778c 00000004"),
            ],
        ),
        (
            [4, b"\xcc\xcc\xcc\xcc"],
            [("0002", "1122334455667788 00000004"), ("0001", "112233445566778c cccccccc")],
        ),
    ],
)
def test_sparse_data_is_a_chunk_for_each_piece_and_only_the_last_is_done(
    mode: ReplyMode, pieces: list[bytes | int], chunks: list[tuple[str, str]]
) -> None:
    *others, last = chunks
    expected = [chunk(mode, "0000", *each) for each in others] + [chunk(mode, "0001", *last)]
    assert serialize(mode, 0, SparseData(pieces)) == b"".join(expected)


def test_block_status_has_extents_of_32_bits() -> None:
    status = BlockStatuses([BlockStatus(7, [(4096, 3), (512, 0)])])
    assert serialize(STRUCTURED, 0, status) == chunk(
        STRUCTURED, "0001", "0005", "00000007 00001000 00000003 00000200 00000000"
    )


def test_extended_block_status_has_a_count_and_extents_of_64_bits() -> None:
    status = BlockStatuses([BlockStatus(7, [(1 << 40, 3), (512, 0)])])
    assert serialize(EXTENDED, 0, status) == chunk(
        EXTENDED,
        "0001",
        "0006",
        "00000007 000000020000010000000000 00000000000000030000000000000200 0000000000000000",
    )


@pytest.mark.parametrize(
    ("extents", "told"),
    [
        ([(2**32 - 4096, 1)], "fffff000 00000001"),
        ([(2**32 - 4095, 1)], "fffff000 00000001"),
        ([(4096, 0), (1 << 40, 3), (4096, 0)], "00001000 00000000 fffff000 00000003"),
        ([(1 << 40, 3), (1 << 40, 0)], "fffff000 00000003"),
    ],
)
def test_extent_that_32_bits_do_not_hold_is_cut_and_is_the_last(
    extents: list[tuple[int, int]], told: str
) -> None:
    assert serialize(STRUCTURED, 0, BlockStatuses([BlockStatus(1, extents)])) == chunk(
        STRUCTURED, "0001", "0005", "00000001" + told
    )


def test_largest_extent_that_32_bits_hold_is_not_the_last() -> None:
    status = BlockStatuses([BlockStatus(1, [(2**32 - 4096, 1), (4096, 0)])])
    assert serialize(STRUCTURED, 0, status) == chunk(
        STRUCTURED, "0001", "0005", "00000001 fffff000 00000001 00001000 00000000"
    )


def test_block_status_has_a_chunk_for_each_context_and_only_the_last_is_done() -> None:
    several = BlockStatuses([BlockStatus(1, [(4096, 3)]), BlockStatus(9, [(512, 1)])])
    assert serialize(STRUCTURED, 0, several) == chunk(
        STRUCTURED, "0000", "0005", "00000001 00001000 00000003"
    ) + chunk(STRUCTURED, "0001", "0005", "00000009 00000200 00000001")


# What a client makes of it


def test_simple_reply_parses_from_literal_bytes() -> None:
    message = bytes.fromhex("67446698 0000001c fedcba9876543210")
    header = ReplyHeader(COOKIE, None, True, 0, errno.ENOSPC)
    for mode in (SIMPLE, STRUCTURED):
        assert reply_header_size(mode, message, 0) == 16
        assert parse_reply_header(mode, message) == header


@in_chunks
@pytest.mark.parametrize(
    ("flags", "kind", "payload", "done"),
    [
        ("0001", "0000", "", True),
        ("0000", "0001", "00" * 9, False),
        ("0001", "0002", "00" * 12, True),
        ("0001", "0005", "00" * 12, True),
        ("fffe", "8001", "00000005 0000", False),
        ("ffff", "8002", "00" * 14, True),
        ("0001", "ffff", "00" * 6, True),
    ],
)
@pytest.mark.parametrize("kind_of_buffer", [bytes, bytearray, memoryview])
def test_chunk_header_parses_at_a_position_in_any_buffer(
    mode: ReplyMode, flags: str, kind: str, payload: str, done: bool, kind_of_buffer: type
) -> None:
    message = kind_of_buffer(b"junk" + chunk(mode, flags, kind, payload))
    assert reply_header_size(mode, message, 4) == (32 if mode is EXTENDED else 20)
    length = len(bytes.fromhex(payload))
    expected = ReplyHeader(COOKIE, int(kind, 16), done, length, 0)
    assert parse_reply_header(mode, message, 4) == expected


@pytest.mark.parametrize("mode", ReplyMode)
@pytest.mark.parametrize("place", range(4))
def test_reply_with_one_wrong_magic_byte_is_refused(mode: ReplyMode, place: int) -> None:
    message = bytearray(serialize(mode, 0) + bytes(16))
    message[place] ^= 0x01
    with pytest.raises(ProtocolError, match="expected"):
        parse_reply_header(mode, message)


@pytest.mark.parametrize(
    ("mode", "others"),
    [(SIMPLE, [STRUCTURED, EXTENDED]), (STRUCTURED, [EXTENDED]), (EXTENDED, [SIMPLE, STRUCTURED])],
)
def test_reply_that_was_not_agreed_upon_is_refused(
    mode: ReplyMode, others: list[ReplyMode]
) -> None:
    for other in others:
        with pytest.raises(ProtocolError, match="expected"):
            parse_reply_header(mode, serialize(other, 0) + bytes(16))


@in_chunks
@pytest.mark.parametrize(
    ("kind", "longest"),
    [
        (ReplyType.NONE, 0),
        (ReplyType.OFFSET_DATA, 8 + MAX_PAYLOAD),
        (ReplyType.OFFSET_HOLE, 12),
        (ReplyType.BLOCK_STATUS, 4 + 8 * 2**20),
        (ReplyType.BLOCK_STATUS_EXT, 8 + 16 * 2**20),
        (ReplyType.ERROR, 6 + 4096 + 8),
        (ReplyType.ERROR_OFFSET, 6 + 4096 + 8),
        (0xFFFF, 6 + 4096 + 8),
        (3, 0),
        (0x7FFF, 0),
    ],
)
def test_chunk_of_a_length_that_cannot_be_is_refused(
    mode: ReplyMode, kind: int, longest: int
) -> None:
    header = chunk(mode, "0001", f"{kind:04x}", "")
    size = 8 if mode is EXTENDED else 4
    for length in (0, longest):
        message = header[:-size] + length.to_bytes(size)
        assert parse_reply_header(mode, message).length == length
    for length in (longest + 1, 2 ** (8 * size) - 1):
        with pytest.raises(ProtocolError, match=f"{length} bytes"):
            parse_reply_header(mode, header[:-size] + length.to_bytes(size))


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ("00000005 0000", (5, "")),
        ("0000001c 0003 6e6f21", (28, "no!")),
        ("00000016 0002 6e6f 0000000000001000", (22, "no")),  # ERROR_OFFSET
        ("ffffffff 0001 ff", (2**32 - 1, "\N{REPLACEMENT CHARACTER}")),
    ],
)
def test_error_chunk_parses_from_literal_bytes(payload: str, error: tuple[int, str]) -> None:
    assert parse_error(memoryview(bytes.fromhex(payload))) == error


@pytest.mark.parametrize("payload", ["", "0000000500", "00000000 0000", "00000005 0001"])
def test_error_chunk_that_is_cut_short_or_without_an_error_is_refused(payload: str) -> None:
    with pytest.raises(ProtocolError, match="error chunk"):
        parse_error(memoryview(bytes.fromhex(payload)))


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (ReplyType.BLOCK_STATUS, "00000007 00001000 00000003 00000200 00000000"),
        (
            ReplyType.BLOCK_STATUS_EXT,
            "00000007 000000020000000000001000 0000000000000003 0000000000000200 0000000000000000",
        ),
    ],
)
def test_block_status_parses_from_literal_bytes(kind: ReplyType, payload: str) -> None:
    data = bytes.fromhex(payload)
    assert parse_block_status(kind, memoryview(data)) == BlockStatus(7, [(4096, 3), (512, 0)])
    whole = {len(data), 12} if kind is ReplyType.BLOCK_STATUS else {len(data)}
    for cut in set(range(len(data))) - whole:
        with pytest.raises(ProtocolError, match="block status"):
            parse_block_status(kind, memoryview(data[:cut]))


@pytest.mark.parametrize("count", [0, 1, 3, 2**32 - 1])
def test_extended_block_status_with_a_lying_count_is_refused(count: int) -> None:
    payload = bytes(4) + count.to_bytes(4) + bytes.fromhex("0000000000000200 0000000000000000") * 2
    with pytest.raises(ProtocolError, match="number of extents"):
        parse_block_status(ReplyType.BLOCK_STATUS_EXT, memoryview(payload))


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (ReplyType.BLOCK_STATUS, "00000007 00000000 00000003"),
        (ReplyType.BLOCK_STATUS_EXT, "00000007 00000001 0000000000000000 0000000000000003"),
    ],
)
def test_empty_extent_is_refused(kind: ReplyType, payload: str) -> None:
    with pytest.raises(ProtocolError, match="empty extent"):
        parse_block_status(kind, memoryview(bytes.fromhex(payload)))
