"""Conversations that keep to the protocol: what fuzzing and property tests begin with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from aiovblk.protocol import (
    BASE_ALLOCATION,
    SERIALIZERS,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    BlockStatus,
    BlockStatuses,
    ClientHandshake,
    Command,
    CommandFlag,
    Info,
    Option,
    OptionReply,
    ReplyContent,
    ReplyMode,
    Request,
    ServerHandshake,
    SparseData,
    TLSMode,
    serialize_context_selection,
    serialize_request,
)
from aiovblk.protocol.options import (
    serialize_context_request,
    serialize_info_request,
    serialize_option,
    serialize_option_reply,
    serialize_string,
)

from ..support.handshake_transcript import transcribe_both
from .targets import BITMAPS, CALLS, CLIENT_SETTINGS, CONTEXTS, EXPORTS, SERVER_SETTINGS

FLAGS = bytes([0, 0, 0, 3])
"""Client flags: fixed newstyle, no zeroes."""

OPTIONS = [
    serialize_option(Option.LIST),
    serialize_option(Option.STARTTLS),
    serialize_option(Option.STRUCTURED_REPLY),
    serialize_option(Option.EXTENDED_HEADERS),
    serialize_option(Option.PEEK_EXPORT, b"anything"),
    serialize_option(Option.LIST_META_CONTEXT, serialize_context_request("disk", [])),
    serialize_option(Option.LIST_META_CONTEXT, serialize_context_request("disk", ["base:", "x:"])),
    serialize_option(Option.SET_META_CONTEXT, serialize_context_request("disk", [BASE_ALLOCATION])),
    serialize_option(Option.SET_META_CONTEXT, serialize_context_request("", ["x:y"])),
    serialize_option(Option.LIST_META_CONTEXT, serialize_context_request("disk", ["qemu:"])),
    serialize_option(Option.SET_META_CONTEXT, serialize_context_request("disk", list(CONTEXTS))),
    serialize_option(Option.INFO, serialize_info_request("disk", list(Info))),
    serialize_option(Option.INFO, serialize_info_request("gone", [])),
    serialize_option(Option.INFO, serialize_string("disk") + bytes(2 + 70_000)),
    serialize_option(Option.GO, serialize_info_request("nowhere", [Info.BLOCK_SIZE])),
    serialize_option(Option.GO, serialize_info_request("", [Info.NAME])),
    serialize_option(Option.GO, serialize_info_request("disk", [Info.DESCRIPTION])),
]
ENDS = [
    serialize_option(Option.ABORT),
    serialize_option(Option.EXPORT_NAME, b"disk"),
    serialize_option(Option.EXPORT_NAME),
]


def server_handshake() -> Iterator[bytes]:
    """All options in order, in each setting; and each by itself."""
    for setting in range(len(SERVER_SETTINGS)):
        for end in ENDS:
            yield bytes([setting]) + FLAGS + b"".join(OPTIONS[:-2]) + end
        yield bytes([setting]) + FLAGS + b"".join(OPTIONS)
    yield from (b"\0" + FLAGS + option for option in (*OPTIONS, *ENDS))
    yield b"\0" + bytes(4) + ENDS[1]


def client_handshake() -> Iterator[bytes]:
    """What servers say to each kind of client; and replies that real servers do not give."""
    for setting, (tls, mode, allocation, contexts) in enumerate(CLIENT_SETTINGS):
        client = partial(
            ClientHandshake,
            "disk",
            tls=tls,
            mode=mode,
            allocation=allocation,
            contexts=contexts,
        )
        server = partial(
            ServerHandshake, {"disk": "a disk"}, tls=TLSMode.REQUIRED if tls else TLSMode.OFF
        )
        yield bytes([setting]) + transcribe_both(client, server, EXPORTS, BITMAPS).from_server
    greeting = b"NBDMAGICIHAVEOPT\0\1"
    go = Option.GO
    yield b"\0" + greeting + serialize_option_reply(go, OptionReply.ERR_UNSUP) + bytes(8 + 2 + 124)
    yield b"\0" + greeting + serialize_option_reply(go, OptionReply.ERR_UNKNOWN, b"not here")
    yield b"\0" + greeting + serialize_option_reply(go, OptionReply.ACK)
    yield b"\0NBDMAGIC" + bytes.fromhex("00420281861253") + bytes(136)


def requests() -> Iterator[bytes]:
    """Each command in each mode, with and without each flag."""
    for mode in ReplyMode:
        some = [
            _request(mode, command, offset, length, flags=flags)
            for command in Command
            for flags in (0, *CommandFlag)
            for offset, length in [(512, 1024), (0, 256 * 1024), (0, 0)]
            if command != Command.WRITE or length < 2048
        ]
        for setting in (0x60, 0xE0, 0x00):
            for size in (0, 17, 255):
                yield bytes([setting + mode, size]) + b"".join(some[::7])
        yield from (bytes([0x60 + mode, 0]) + each for each in some[::5])
        yield bytes([mode, 0]) + _request(mode, Command.FLUSH, 0, 0) * 8
    for ids in ([2], [1, 2], [2, 2], [3], []):
        selection = serialize_context_selection(8192, ids)
        request = Request(
            CommandFlag.PAYLOAD_LEN, Command.BLOCK_STATUS, 0xC0FFEE, 512, len(selection)
        )
        yield (
            bytes([0x60 + ReplyMode.EXTENDED, 0])
            + serialize_request(request, ReplyMode.EXTENDED)
            + selection
        )


def _request(
    mode: ReplyMode, command: Command, offset: int, length: int, *, flags: int = 0
) -> bytes:
    request = Request(flags, command, 0xC0FFEE, offset, length)
    has_payload = command is Command.WRITE or (
        flags & CommandFlag.PAYLOAD_LEN and mode is ReplyMode.EXTENDED and length < 2048
    )
    return serialize_request(request, mode) + (b"\xa5" * length if has_payload else b"")


def replies() -> Iterator[bytes]:
    """Success and failure of all that was asked for, in each mode."""
    for mode in ReplyMode:
        answers = [
            _reply(mode, cookie, *call)
            for cookie, call in enumerate(CALLS, 1)
            if mode or cookie < 7
        ]
        errors = b"".join(
            b"".join(SERIALIZERS[mode](Request(0, command, cookie, offset, length), 5, b""))
            for cookie, (command, offset, length) in enumerate(CALLS, 1)
            if mode or cookie < 7
        )
        for size in (0, 17, 255):
            yield bytes([mode, size]) + b"".join(answers)
            yield bytes([mode, size]) + b"".join(answers[::-1])
            yield bytes([mode, size]) + errors
        yield from (bytes([mode, 0]) + answer for answer in answers)
    for cookie in range(1, 9):
        yield bytes([ReplyMode.STRUCTURED, 0]) + SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 28, cookie)


def _reply(mode: ReplyMode, cookie: int, command: Command, offset: int, length: int) -> bytes:
    request = Request(0, command, cookie, offset, length)
    content: ReplyContent = b""
    if command is Command.READ:
        content = b"\x5a" * length
        if mode and length > 64:
            content = SparseData([b"\x5a" * 32, length - 64, b"\x5a" * 32])
    elif command is Command.BLOCK_STATUS:
        extents = [(4096, 3), (length - 4096, 0)]
        content = BlockStatuses([BlockStatus(number, extents) for number in CONTEXTS.values()])
    return b"".join(SERIALIZERS[mode](request, 0, content))


SEEDS = {
    "server_handshake": server_handshake,
    "client_handshake": client_handshake,
    "requests": requests,
    "replies": replies,
}
