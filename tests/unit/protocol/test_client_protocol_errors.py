"""Servers that break the protocol, speak another one, or want TLS: what the client's side says."""

from __future__ import annotations

import pickle

import pytest

import aiovblk
from aiovblk.errors import OptionRefusedError, ProtocolError, TLSRequiredError
from aiovblk.protocol import NegotiationResult

from ...support import wire
from ...support.client_negotiation import (
    CONTEXT,
    CONTEXTS_DONE,
    DONE,
    EXPORT,
    INFO,
    TAKE_EXTENDED,
    negotiate,
    simple_negotiate,
)
from ...support.wire import (
    INFO_REPLY,
    reply,
)

# Replies that break the protocol


@pytest.mark.parametrize("place", range(12))
def test_reply_with_one_wrong_byte_in_magic_or_option_is_a_protocol_error(place: int) -> None:
    answer = bytearray(DONE)
    answer[place] ^= 0x80
    transcript = simple_negotiate(EXPORT, bytes(answer))
    assert "other than a reply" in str(transcript.error)


@pytest.mark.parametrize("kind", [wire.ACK, INFO_REPLY, wire.UNKNOWN])
@pytest.mark.parametrize("length", [64 * 1024 + 1, 2**32 - 1])
def test_reply_of_a_length_that_cannot_be_is_a_protocol_error(kind: int, length: int) -> None:
    transcript = simple_negotiate(reply(wire.GO, kind)[:-4] + wire.u32(length))
    assert f"{length} bytes" in str(transcript.error)


def test_reply_of_64_kib_is_received() -> None:
    transcript = simple_negotiate(EXPORT, reply(wire.GO, 99, bytes(64 * 1024)), DONE)
    assert transcript.result == NegotiationResult("disk", INFO)


@pytest.mark.parametrize("size", [0, 64 * 1024], ids=["many", "long"])
def test_replies_without_end_are_a_protocol_error(size: int) -> None:
    transcript = simple_negotiate(reply(wire.GO, 99, bytes(size)) * (10_001 if not size else 300))
    assert "too many replies to GO" in str(transcript.error)
    assert sum(transcript.received) < 17 << 20


def test_acknowledgement_with_data_is_one() -> None:
    transcript = simple_negotiate(EXPORT, reply(wire.GO, wire.ACK, b"?"))
    assert transcript.result == NegotiationResult("disk", INFO)


# Others than NBD servers, and TLS that one side wants


@pytest.mark.parametrize(
    ("greeting", "shown"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0-"),
        (b"220 mail\r", "220 mail"),
        (b"\x1b]0;xy\x07!", r"\x1b]0;xy\x07!"),
    ],
)
def test_server_that_is_none_is_told_by_how_it_greets(greeting: bytes, shown: str) -> None:
    transcript = negotiate(greeting=greeting[:8])  # and nothing more is waited for
    assert isinstance(transcript.error, ProtocolError)
    assert str(transcript.error) == f'this is no NBD server: it greets with "{shown}"'
    assert transcript.sent == b""


@pytest.mark.parametrize("option_", [wire.STRUCTURED_REPLY, wire.SET_META_CONTEXT, wire.GO])
def test_tls_that_is_wanted_late_is_told_as_well(option_: int) -> None:
    before = {
        wire.STRUCTURED_REPLY: reply(wire.EXTENDED_HEADERS, wire.UNSUP),
        wire.SET_META_CONTEXT: TAKE_EXTENDED,
        wire.GO: TAKE_EXTENDED + CONTEXT + CONTEXTS_DONE,
    }[option_]
    transcript = negotiate(before, reply(option_, wire.TLS_REQD))
    assert isinstance(transcript.error, TLSRequiredError)


def test_exceptions_are_public_and_can_be_pickled() -> None:
    assert issubclass(aiovblk.OptionRefusedError, aiovblk.ProtocolError)
    for kind in (aiovblk.OptionRefusedError, aiovblk.TLSRequiredError, aiovblk.TLSUnavailableError):
        error: OptionRefusedError = pickle.loads(pickle.dumps(kind("reason", 7)))
        assert (type(error), str(error), error.reply) == (kind, "reason", 7)
