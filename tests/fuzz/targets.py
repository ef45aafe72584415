"""What is fuzzed: functions of bytes that raise only where there is a bug.

The first bytes choose the setting, all others are what the peer sends. No sockets, and no loop that
waits, so that a second is enough for thousands of inputs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

from aiovblk import ProtocolError
from aiovblk.client.connection import ClientConnection, ConnectionLostError
from aiovblk.dispatch import (
    ConcurrencyLimiter,
    ConnectionQuota,
    Dispatcher,
    MemoryBudget,
    Stats,
    transmission_flags,
)
from aiovblk.protocol import (
    MAX_PAYLOAD,
    ClientHandshake,
    Command,
    ExportInfo,
    NegotiationResult,
    ReplyMode,
    ServerHandshake,
    TLSMode,
    TransmissionFlag,
    parse_reply_header,
    reply_header_size,
)
from aiovblk.stream import StreamProtocol

from ..support.bitmap_disk import BitmapDisk
from ..support.handshake_transcript import transcribe
from ..support.simulated_loop import MemoryTransport, StillLoop, converse_in_memory

LARGEST_BUFFER = MAX_PAYLOAD + 128 * 1024
"""Bytes that a peer can make a reader allocate: the longest payload, its header, and some room."""

SIZE = 512 * 1024
"""Bytes of the device: two of a MemoryDevice's units, so that one can be a hole."""

EXPORTS = {
    "": ExportInfo(SIZE, TransmissionFlag.HAS_FLAGS),
    "disk": ExportInfo(1 << 40, TransmissionFlag(0xFFF), 512, 4096, 1 << 20, "a disk"),
    "gone": None,
}

BITMAPS = {"disk": ["new", "old", "x" * 5000, "\ud800"]}

CONTEXTS = {"base:allocation": 1, "qemu:dirty-bitmap:old": 2}
"""What was negotiated before the transmission phase, with ids."""

SERVER_SETTINGS = [
    (tls, names) for tls in TLSMode for names in (["", "disk", "gone"], ["disk"], ["gone"])
]
CLIENT_SETTINGS = [
    (tls, mode, allocation, contexts)
    for contexts in ((), ("qemu:dirty-bitmap:", "x:y"))
    for mode in ReplyMode
    for tls in (False, True)
    for allocation in (False, True)
]


def server_handshake(data: bytes) -> None:
    """A client, whoever it is, in the handshake: ``setting bytes``."""
    if not data:
        return
    tls, names = SERVER_SETTINGS[data[0] % len(SERVER_SETTINGS)]
    handshake = ServerHandshake({name: f"this is {name}" for name in names}, tls=tls)
    transcript = transcribe(handshake, data[1:], EXPORTS, BITMAPS)
    # Nothing is amplified but by LIST, which is bounded by what it lists.
    assert len(transcript.sent) <= 18 + 64 * len(names) * (len(data) + 64)
    agreement = transcript.result
    if agreement is not None:
        assert agreement.name in names
        assert EXPORTS[agreement.name] is agreement.info
        assert not agreement.contexts or agreement.mode is not ReplyMode.SIMPLE
        assert len(set(agreement.contexts.values())) == len(agreement.contexts)
        assert tls is not TLSMode.REQUIRED or transcript.secured_after
    if tls is TLSMode.REQUIRED and not transcript.secured_after:
        assert not transcript.opened + transcript.listed  # "a client learns nothing but that"


def client_handshake(data: bytes) -> None:
    """A server, whatever it is, in the handshake: ``setting bytes``."""
    if not data:
        return
    tls, mode, allocation, contexts = CLIENT_SETTINGS[data[0] % len(CLIENT_SETTINGS)]
    handshake = ClientHandshake(
        "disk", tls=tls, mode=mode, allocation=allocation, contexts=contexts
    )
    transcript = transcribe(handshake, data[1:])
    # It selects what the server has listed.
    assert len(transcript.sent) <= 1024 + (len(data) if contexts else 0)
    agreement = transcript.result
    if agreement is not None:
        assert agreement.mode <= mode
        assert bool(transcript.secured_after) is tls
        assert 0 <= agreement.info.size < 1 << 63
        assert 0 < agreement.info.minimum_block <= agreement.info.maximum_payload <= MAX_PAYLOAD
        assert agreement.mode or not agreement.contexts
        assert agreement.allocation_context_id is None or allocation or contexts


def requests(data: bytes) -> None:
    """A client in the transmission phase: ``mode, size of the pieces that arrive, bytes``."""
    if len(data) < 2:
        return
    mode = ReplyMode(data[0] % 3)
    device = BitmapDisk(SIZE, "old")
    flags = transmission_flags(device)
    if data[0] & 0x40:
        flags |= TransmissionFlag.SEND_CACHE | TransmissionFlag.SEND_FAST_ZERO
    if data[0] & 0x80:
        flags |= TransmissionFlag.READ_ONLY
    contexts = CONTEXTS if mode and data[0] & 0x20 else {}
    agreement = NegotiationResult("", ExportInfo(SIZE, flags), mode, contexts)
    stats = Stats()
    budget = MemoryBudget(256 * 1024)
    with StillLoop() as loop:
        share = ConnectionQuota(budget, 128 * 1024)
        stream = StreamProtocol()
        transport = MemoryTransport(stream)
        dispatcher = Dispatcher(
            device,
            stats,
            negotiated=agreement,
            quota=share,
            limiter=ConcurrencyLimiter(4),
            on_disconnect=lambda: None,
        )
        dispatcher.attach_stream(stream)
        serving = loop.start(dispatcher.run())
        converse_in_memory(loop, transport, serving, pieces(data[2:], data[1]))
        assert serving.done(), "the dispatcher waits for what nobody will send"
        error = serving.exception()
        assert error is None or isinstance(error, (ProtocolError, asyncio.IncompleteReadError)), (
            error
        )
        assert dispatcher.drained().done()
        share.close()
        assert budget.used == 0
    assert transport.largest_buffer <= LARGEST_BUFFER
    assert stats.in_flight == 0
    check_replies(mode, bytes(transport.sent), stats)


def check_replies(mode: ReplyMode, sent: bytes, stats: Stats) -> None:
    """Make sure that there is one whole reply to each request, and nothing else."""
    answered = (
        stats.errors
        + stats.reads
        + stats.writes
        + stats.flushes
        + stats.trims
        + stats.write_zeroes
        + stats.caches
        + stats.block_statuses
    )
    if mode is ReplyMode.SIMPLE:
        assert len(sent) == 16 * answered + stats.bytes_read
        return
    position = replies = 0
    while position < len(sent):
        header = parse_reply_header(mode, sent, position)
        assert header.type is not None
        position += reply_header_size(mode, sent, position) + header.length
        replies += header.done
    assert (position, replies) == (len(sent), answered)


CALLS: list[tuple[Command, int, int]] = [
    (Command.READ, 0, 4096),
    (Command.READ, 4096, 64),
    (Command.READ, 1 << 40, 64),
    (Command.WRITE, 0, 512),
    (Command.FLUSH, 0, 0),
    (Command.TRIM, 0, 1 << 30),
    (Command.BLOCK_STATUS, 4096, 8192),
    (Command.BLOCK_STATUS, 0, 1 << 31),
]
"""What the client has asked for; the cookies count from 1 on."""


def replies(data: bytes) -> None:
    """A server in the transmission phase: ``mode, size of the pieces that arrive, bytes``."""
    if len(data) < 2:
        return
    mode = ReplyMode(data[0] % 3)
    info = ExportInfo(1 << 62, TransmissionFlag(0xFFF))
    agreement = NegotiationResult("", info, mode, CONTEXTS if mode else {})
    asked = CALLS if mode else CALLS[:6]
    with StillLoop() as loop:
        stream = StreamProtocol()
        transport = MemoryTransport(stream)
        connection = ClientConnection(stream, agreement)
        calls = [
            loop.start(
                _result_of(
                    connection.call(
                        command,
                        offset,
                        length,
                        data=bytes(length) if command is Command.WRITE else None,
                    )
                )
            )
            for command, offset, length in asked
        ]
        receiving = loop.start(connection.run())
        converse_in_memory(loop, transport, receiving, pieces(data[2:], data[1]))
        assert receiving.done(), "the client waits for what nobody will send"
        error = receiving.result()
        assert isinstance(error, (ProtocolError, OSError)), error
        assert not isinstance(error, ConnectionLostError)
        for (command, _, length), call in zip(asked, calls, strict=True):
            check_outcome(command, length, call)
    assert transport.largest_buffer <= LARGEST_BUFFER


async def _result_of(call: Awaitable[object]) -> object:
    return await call


def check_outcome(command: Command, length: int, call: asyncio.Task[object]) -> None:
    """Make sure that a call failed, or returned what it can."""
    assert call.done(), f"a {command.name} waits although the connection is gone"
    error = call.exception()
    if error is not None:
        assert isinstance(error, (OSError, ConnectionLostError)), error
        return
    result = call.result()
    if command is Command.READ:
        assert isinstance(result, memoryview)
        assert len(result) == length
    elif command is Command.BLOCK_STATUS:
        assert isinstance(result, dict)
        assert result.keys() == CONTEXTS.keys()
        assert all(result.values())
    else:
        assert result is None


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """``data`` in pieces of ``size``, but no more than 64 of them; whole where it is 0."""
    if not size:
        size = len(data) or 1
    cut = min(len(data), 63 * size)
    yield from (data[at : at + size] for at in range(0, cut, size))
    if data[cut:]:
        yield data[cut:]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "server_handshake": server_handshake,
    "client_handshake": client_handshake,
    "requests": requests,
    "replies": replies,
}
