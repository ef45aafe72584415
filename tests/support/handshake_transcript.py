"""Run either side of a handshake against literal bytes, to its end or until it waits for more."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiovblk import ProtocolError
from aiovblk.protocol import (
    ClientHandshake,
    ExportInfo,
    ListBitmaps,
    NegotiationResult,
    OpenExport,
    Pause,
    Receive,
    ServerHandshake,
    StartTLS,
)

LONGEST_RECEIVE = 64 * 1024
"""Bytes that a handshake may want at once: what a peer can make us allocate before it is known."""


@dataclass
class Transcript:
    """What one side of a handshake did."""

    sent: bytes = b""
    """All bytes that it sent."""
    left: bytes = b""
    """The bytes that it did not receive."""
    ended: bool = False
    """Whether it ended; otherwise it waits for more bytes."""
    result: NegotiationResult | None = None
    error: ProtocolError | None = None
    opened: list[str] = field(default_factory=list)
    """The exports that it asked for."""
    listed: list[str] = field(default_factory=list)
    """The exports whose dirty bitmaps it asked for."""
    secured_after: list[int] = field(default_factory=list)
    """How many bytes it had sent each time TLS began."""
    received: list[int] = field(default_factory=list)
    """How many bytes it wanted, each time."""


def transcribe(
    handshake: ServerHandshake | ClientHandshake,
    incoming: bytes,
    exports: Mapping[str, ExportInfo | None] | None = None,
    bitmaps: Mapping[str, Sequence[str]] | None = None,
) -> Transcript:
    """Run ``handshake`` against a peer that sends ``incoming``, whatever it receives.

    Args:
        handshake: either side.
        incoming: all that the peer sends.
        exports: what there is to open, for the server's side.
        bitmaps: the dirty bitmaps of exports that have some; by default none.

    """
    transcript = Transcript()
    received = 0
    steps: Generator[Any, Any, NegotiationResult | None] = handshake.run()
    answer: object = None
    try:
        while True:
            step = steps.send(answer)
            transcript.sent += handshake.data_to_send()
            if isinstance(step, Receive):
                assert 0 < step.length <= LONGEST_RECEIVE
                if len(incoming) - received < step.length:
                    return transcript
                transcript.received.append(step.length)
                answer = incoming[received : received + step.length]
                received += step.length
            elif isinstance(step, OpenExport):
                transcript.opened.append(step.name)
                answer = (exports or {}).get(step.name)
            elif isinstance(step, ListBitmaps):
                transcript.listed.append(step.name)
                is_there = (exports or {}).get(step.name) is not None
                answer = (bitmaps or {}).get(step.name, ()) if is_there else None
            elif isinstance(step, Pause):
                answer = None
            else:
                assert isinstance(step, StartTLS)
                transcript.secured_after.append(len(transcript.sent))
                answer = None
    except StopIteration as end:
        transcript.result = end.value
    except ProtocolError as exc:
        transcript.error = exc
    finally:
        transcript.left = incoming[received:]
    transcript.sent += handshake.data_to_send()
    transcript.ended = True
    return transcript


@dataclass
class BothTranscripts:
    """What both sides of a handshake did with each other."""

    from_client: bytes
    from_server: bytes
    client: NegotiationResult | None = None
    server: NegotiationResult | None = None
    error: ProtocolError | None = None
    """What the client raised."""
    secured: bool = False


def transcribe_both(
    make_client: Callable[[], ClientHandshake],
    make_server: Callable[[], ServerHandshake],
    exports: Mapping[str, ExportInfo | None],
    bitmaps: Mapping[str, Sequence[str]] | None = None,
) -> BothTranscripts:
    """Run both sides against each other until both have ended."""
    # Handshakes are short: it is simplest to start again with all that the other side has sent.
    from_client = from_server = b""
    while True:
        listening = transcribe(make_server(), from_client, exports, bitmaps)
        speaking = transcribe(make_client(), listening.sent)
        if (speaking.sent, listening.sent) == (from_client, from_server):
            break
        from_client, from_server = speaking.sent, listening.sent
    assert speaking.ended
    assert speaking.left == b"", "the server sent something behind the handshake"
    assert speaking.error or (listening.ended and listening.left == b"")
    return BothTranscripts(
        from_client,
        from_server,
        speaking.result,
        listening.result,
        speaking.error,
        bool(listening.secured_after),
    )
