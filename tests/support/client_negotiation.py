"""Run the client's side of the handshake against a server that sends given replies."""

from __future__ import annotations

from typing import Any

from aiovblk.errors import OptionRefusedError
from aiovblk.protocol import ClientHandshake, ExportInfo, ReplyMode, TransmissionFlag

from . import wire
from .handshake_transcript import Transcript, transcribe
from .wire import GREETING, INFO_REPLY, option, reply, string

SIMPLE, STRUCTURED, EXTENDED = ReplyMode

INFO_EXPORT = bytes.fromhex("0000 0000000000100000 0105")
EXPORT = reply(wire.GO, INFO_REPLY, INFO_EXPORT)
DONE = reply(wire.GO, wire.ACK)
INFO = ExportInfo(1 << 20, TransmissionFlag(0x105))

ASK_GO = option(wire.GO, string("disk") + bytes.fromhex("0002 0003 0002"))
ASK_CONTEXT = option(
    wire.SET_META_CONTEXT, string("disk") + b"\0\0\0\1" + string("base:allocation")
)

TAKE_EXTENDED = reply(wire.EXTENDED_HEADERS, wire.ACK)
TAKE_STRUCTURED = reply(wire.STRUCTURED_REPLY, wire.ACK)
REFUSE_EXTENDED = reply(wire.EXTENDED_HEADERS, wire.UNSUP)
REFUSE_STRUCTURED = reply(wire.STRUCTURED_REPLY, wire.UNSUP)
CONTEXT = reply(wire.SET_META_CONTEXT, wire.META_CONTEXT, b"\0\0\0\7base:allocation")
CONTEXTS_DONE = reply(wire.SET_META_CONTEXT, wire.ACK)

# What all clients but the simplest one get here.
WHOLE = TAKE_EXTENDED + CONTEXT + CONTEXTS_DONE + EXPORT + DONE


def negotiate(*answers: bytes, greeting: bytes = GREETING, **options: Any) -> Transcript:
    """Run a client against a server that sends these replies."""
    return transcribe(ClientHandshake("disk", **options), greeting + b"".join(answers))


def simple_negotiate(*answers: bytes) -> Transcript:
    """Run a client that asks for nothing but its export against such a server."""
    return negotiate(*answers, mode=SIMPLE)


def refusal(transcript: Transcript) -> OptionRefusedError:
    assert isinstance(transcript.error, OptionRefusedError)
    return transcript.error
