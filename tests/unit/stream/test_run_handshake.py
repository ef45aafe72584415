"""run_handshake(): bytes in pieces, backpressure, a lost connection, bytes before TLS."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from aiovblk import ProtocolError
from aiovblk.protocol import (
    ExportInfo,
    NegotiationResult,
    ServerHandshake,
    TLSMode,
    TransmissionFlag,
)
from aiovblk.stream import StreamProtocol, run_handshake
from aiovblk.stream.tls import start_tls

from ...support import wire
from ...support.simulated_loop import MemoryTransport, StillLoop

NAMES = {f"{number:03d}": "d" * 4096 for number in range(16)}
LIST_ANSWER = len(NAMES) * (20 + 4 + 3 + 4096) + 20
DISK = ExportInfo(4096, TransmissionFlag.HAS_FLAGS)


class Peer:
    """A client of a server's handshake, on a loop that never waits."""

    def __init__(
        self, loop: StillLoop, *, stalled: bool = False, tls: TLSMode = TLSMode.OFF
    ) -> None:
        self.loop = loop
        self.stream = StreamProtocol()
        self.transport = MemoryTransport(self.stream, stalled=stalled)
        self.negotiating = loop.start(
            run_handshake(
                ServerHandshake(NAMES, tls=tls),
                self.stream,
                start_tls=self._start_tls,
                open_export=self._open_export,
            )
        )

    def send(self, data: bytes) -> None:
        self.transport.deliver(data)
        self.loop.run_due()

    async def _start_tls(self) -> None:
        await start_tls(self.stream, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), server_side=True)

    async def _open_export(self, name: str) -> ExportInfo:
        return DISK


def test_bytes_that_come_one_by_one_negotiate_an_export() -> None:
    with StillLoop() as loop:
        peer = Peer(loop)
        for byte in wire.FLAGS + wire.go("001"):
            assert not peer.negotiating.done()
            peer.send(bytes([byte]))
        assert peer.negotiating.result() == NegotiationResult("001", DISK)


def test_backpressure_client_that_does_not_read_gets_no_more_replies() -> None:
    options = wire.FLAGS + 1000 * wire.option(wire.LIST)
    with StillLoop() as loop:
        peer = Peer(loop, stalled=True)
        peer.send(options + wire.go("001"))
        assert len(peer.transport.sent) <= LIST_ANSWER + 64 * 1024
        assert not peer.negotiating.done()
        while not peer.negotiating.done():
            peer.transport.read()
            before = len(peer.transport.sent)
            loop.run_due()
            assert len(peer.transport.sent) - before <= LIST_ANSWER + 64 * 1024
        assert len(peer.transport.sent) > 1000 * LIST_ANSWER
        assert peer.negotiating.result() == NegotiationResult("001", DISK)


@pytest.mark.parametrize("stalled", [False, True])
@pytest.mark.parametrize("sent", [b"", b"\0\0", wire.FLAGS, wire.FLAGS + wire.option(wire.LIST)])
def test_connection_that_is_lost_ends_the_handshake(stalled: bool, sent: bytes) -> None:
    with StillLoop() as loop:
        peer = Peer(loop, stalled=stalled)
        peer.send(sent)
        peer.transport.lose()
        loop.run_due()
        assert isinstance(peer.negotiating.exception(), asyncio.IncompleteReadError)


def test_last_reply_is_sent_before_a_protocol_error_is_raised() -> None:
    with StillLoop() as loop:
        peer = Peer(loop)
        peer.send(wire.FLAGS + wire.option(99) + b"GET / HTTP/1.1\r\n")
        assert isinstance(peer.negotiating.exception(), ProtocolError)
        assert wire.replies(bytes(peer.transport.sent))[0][:2] == (99, wire.UNSUP)


@pytest.mark.parametrize("behind", [b"\x16", wire.go("001")])
def test_unprotected_bytes_behind_starttls_end_the_handshake(behind: bytes) -> None:
    with StillLoop() as loop:
        peer = Peer(loop, tls=TLSMode.REQUIRED)
        peer.send(wire.FLAGS + wire.option(wire.STARTTLS) + behind)
        assert isinstance(peer.negotiating.exception(), ProtocolError)
        assert "before TLS" in str(peer.negotiating.exception())
