"""Handshakes with literal bytes: either side's talk, driven to its end or to where it waits."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiovblk import ProtocolError
from aiovblk.protocol import (
    ClientHandshake,
    ExportInfo,
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
class Held:
    """What became of a talk."""

    sent: bytes = b""
    """All that it sent."""
    left: bytes = b""
    """What it did not receive."""
    ended: bool = False
    """Whether it came to an end; otherwise it waits for more bytes."""
    agreement: NegotiationResult | None = None
    error: ProtocolError | None = None
    opened: list[str] = field(default_factory=list)
    """The exports that it asked for."""
    secured_after: list[int] = field(default_factory=list)
    """How many bytes it had sent each time TLS began."""
    received: list[int] = field(default_factory=list)
    """How many bytes it wanted, each time."""


def hold(
    handshake: ServerHandshake | ClientHandshake,
    incoming: bytes,
    exports: Mapping[str, ExportInfo | None] | None = None,
) -> Held:
    """Let ``handshake`` talk to a peer that sends ``incoming``, and look at nothing it gets.

    Args:
        handshake: either side.
        incoming: all that the peer sends.
        exports: what there is to open, for the server's side.

    """
    held = Held(left=incoming)
    talk: Generator[Any, Any, NegotiationResult | None] = handshake.run()
    answer: object = None
    try:
        while True:
            step = talk.send(answer)
            held.sent += handshake.data_to_send()
            if isinstance(step, Receive):
                assert 0 < step.length <= LONGEST_RECEIVE
                if len(held.left) < step.length:
                    return held
                held.received.append(step.length)
                answer, held.left = held.left[: step.length], held.left[step.length :]
            elif isinstance(step, OpenExport):
                held.opened.append(step.name)
                answer = (exports or {}).get(step.name)
            elif isinstance(step, Pause):
                answer = None
            else:
                assert isinstance(step, StartTLS)
                held.secured_after.append(len(held.sent))
                answer = None
    except StopIteration as end:
        held.agreement = end.value
    except ProtocolError as exc:
        held.error = exc
    held.sent += handshake.data_to_send()
    held.ended = True
    return held


@dataclass
class Together:
    """What became of two sides that talked to each other."""

    from_client: bytes
    from_server: bytes
    client: NegotiationResult | None = None
    server: NegotiationResult | None = None
    error: ProtocolError | None = None
    """Why the client gave up."""
    secured: bool = False


def talk_together(
    make_client: Callable[[], ClientHandshake],
    make_server: Callable[[], ServerHandshake],
    exports: Mapping[str, ExportInfo | None],
) -> Together:
    """Let both sides talk to each other until both have come to their end."""
    # Talks are short. Beginning anew with all that the other side has said meanwhile is simple.
    from_client = from_server = b""
    while True:
        listening = hold(make_server(), from_client, exports)
        speaking = hold(make_client(), listening.sent)
        if (speaking.sent, listening.sent) == (from_client, from_server):
            break
        from_client, from_server = speaking.sent, listening.sent
    assert speaking.ended
    assert speaking.left == b"", "the server sent something behind the handshake"
    assert speaking.error or (listening.ended and listening.left == b"")
    return Together(
        from_client,
        from_server,
        speaking.agreement,
        listening.agreement,
        speaking.error,
        bool(listening.secured_after),
    )
