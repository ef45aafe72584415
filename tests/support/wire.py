"""The handshake's layouts once more, in literal bytes: not those of the code that is tested."""

from __future__ import annotations

from collections.abc import Sequence

GREETING = b"NBDMAGIC" + b"IHAVEOPT" + b"\x00\x03"
FLAGS = b"\x00\x00\x00\x03"
PADDING = bytes(124)

EXPORT_NAME, ABORT, LIST, PEEK_EXPORT, STARTTLS, INFO, GO = range(1, 8)
STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS = range(8, 12)

ACK, SERVER, INFO_REPLY, META_CONTEXT = range(1, 5)
UNSUP, POLICY, INVALID, PLATFORM, TLS_REQD, UNKNOWN = range(0x80000001, 0x80000007)
SHUTDOWN, BLOCK_SIZE_REQD, TOO_BIG, EXT_HEADER_REQD = range(0x80000007, 0x8000000B)

Reply = tuple[int, int, bytes]


def u16(number: int) -> bytes:
    return number.to_bytes(2)


def u32(number: int) -> bytes:
    return number.to_bytes(4)


def u64(number: int) -> bytes:
    return number.to_bytes(8)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u32(len(data)) + data


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + u32(number) + u32(len(data)) + data


def reply(number: int, kind: int, data: bytes = b"") -> bytes:
    return bytes.fromhex("0003e889045565a9") + u32(number) + u32(kind) + u32(len(data)) + data


def info_request(name: str, kinds: Sequence[int] = ()) -> bytes:
    return string(name) + u16(len(kinds)) + b"".join(map(u16, kinds))


def context_request(name: str, queries: Sequence[str] = ()) -> bytes:
    return string(name) + u32(len(queries)) + b"".join(map(string, queries))


def go(name: str = "", kinds: Sequence[int] = ()) -> bytes:
    return option(GO, info_request(name, kinds))


def set_context(name: str = "", queries: Sequence[str] = ("base:allocation",)) -> bytes:
    return option(SET_META_CONTEXT, context_request(name, queries))


def replies(sent: bytes) -> list[Reply]:
    """Option, type and data of each reply behind a server's greeting."""
    assert sent.startswith(GREETING)
    found: list[Reply] = []
    rest = sent[len(GREETING) :]
    while rest:
        assert rest[:8] == bytes.fromhex("0003e889045565a9")
        number, kind, length = (int.from_bytes(rest[at : at + 4]) for at in (8, 12, 16))
        assert len(rest) >= 20 + length
        found.append((number, kind, rest[20 : 20 + length]))
        rest = rest[20 + length :]
    return found
