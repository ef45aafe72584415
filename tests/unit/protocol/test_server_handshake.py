"""The server's side of the handshake, against literal bytes: greeting, LIST, EXPORT_NAME, TLS."""

from __future__ import annotations

import pytest

from aiovblk.protocol import NegotiationResult, ReplyMode, ServerHandshake, TLSMode

from ...support import wire
from ...support.handshake_transcript import transcribe
from ...support.server_negotiation import (
    DISK,
    EXTENDED,
    INFO_EXPORT,
    NAMES,
    STARTTLS,
    STRUCTURED,
    assert_refused,
    kinds,
    negotiate,
)
from ...support.wire import (
    GREETING,
    PADDING,
    context_request,
    go,
    info_request,
    option,
    set_context,
)

# Each option that needs no TLS, as a client may send it at any time.
OPTIONS = {
    "LIST": option(wire.LIST),
    "PEEK_EXPORT": option(wire.PEEK_EXPORT),
    "INFO": option(wire.INFO, info_request("disk")),
    "GO": go("disk"),
    "STRUCTURED_REPLY": STRUCTURED,
    "EXTENDED_HEADERS": EXTENDED,
    "LIST_META_CONTEXT": option(wire.LIST_META_CONTEXT, context_request("disk")),
    "SET_META_CONTEXT": set_context("disk"),
}


# Greeting


def test_server_speaks_first() -> None:
    transcript = transcribe(ServerHandshake(NAMES), b"")
    assert (transcript.sent, transcript.ended) == (GREETING, False)


@pytest.mark.parametrize("flags", range(4))
def test_flags_that_were_offered_are_accepted(flags: int) -> None:
    transcript = negotiate(option(wire.ABORT), flags=wire.u32(flags))
    assert transcript.error is None
    assert transcript.ended


@pytest.mark.parametrize("flags", [1 << bit for bit in range(2, 32)])
def test_flag_that_was_not_offered_ends_the_handshake(flags: int) -> None:
    transcript = negotiate(option(wire.ABORT), flags=wire.u32(flags | 3))
    assert transcript.sent == GREETING
    assert f"{flags | 3:#x}" in str(transcript.error)


@pytest.mark.parametrize("place", range(8))
def test_option_with_one_wrong_magic_byte_ends_the_handshake(place: int) -> None:
    message = bytearray(option(wire.LIST))
    message[place] ^= 0x01
    transcript = negotiate(bytes(message))
    assert transcript.sent == GREETING
    assert "expected an option" in str(transcript.error)


def test_server_waits_for_each_byte_of_a_handshake() -> None:
    whole = STRUCTURED + set_context("disk") + option(wire.LIST) + go("disk", [1, 2])
    complete = negotiate(whole)
    assert complete.result is not None
    for cut in range(len(whole)):
        transcript = negotiate(whole[:cut])
        assert not transcript.ended
        assert complete.sent.startswith(transcript.sent)


def test_bytes_behind_the_handshake_are_left_to_the_transmission_phase() -> None:
    assert negotiate(go("disk"), b"\x25\x60\x95\x13").left == b"\x25\x60\x95\x13"


# Options that are none


@pytest.mark.parametrize("number", [0, wire.PEEK_EXPORT, 12, 2**31, 2**32 - 1])
@pytest.mark.parametrize("data", [b"", b"x", bytes(64 * 1024)])
def test_unknown_option_is_unsupported_and_its_data_skipped(number: int, data: bytes) -> None:
    transcript = negotiate(option(number, data))
    assert_refused(transcript, number, wire.UNSUP)
    transcript = negotiate(option(number, data), go("disk"))
    assert transcript.result == NegotiationResult("disk", DISK)


@pytest.mark.parametrize("number", [wire.LIST, wire.GO, wire.STARTTLS, wire.SET_META_CONTEXT, 99])
@pytest.mark.parametrize("length", [64 * 1024 + 1, 300_000])
def test_option_that_is_too_long_is_skipped_in_pieces(number: int, length: int) -> None:
    too_long = option(number, b"IHAVEOPT" * (length // 8) + bytes(length % 8))
    transcript = negotiate(too_long)
    assert_refused(transcript, number, wire.TOO_BIG)
    assert transcript.received[2:] == [64 * 1024] * (length // 65536) + [length % 65536]
    transcript = negotiate(too_long, go("disk"))
    assert transcript.result == NegotiationResult("disk", DISK)


def test_export_name_that_is_too_long_ends_the_handshake() -> None:
    """No error reply to it exists; the client waits for the size of an export."""
    transcript = negotiate(option(wire.EXPORT_NAME, bytes(64 * 1024 + 1)))
    assert transcript.sent == GREETING
    assert transcript.error is not None


# ABORT


@pytest.mark.parametrize("data", [b"", b"so long"])
@pytest.mark.parametrize("tls", TLSMode)
def test_abort_is_acknowledged_and_ends_the_handshake(data: bytes, tls: TLSMode) -> None:
    transcript = negotiate(option(wire.ABORT, data), tls=tls)
    assert transcript.sent == GREETING + wire.reply(wire.ABORT, wire.ACK)
    assert transcript.ended
    assert (transcript.result, transcript.error) == (None, None)


# LIST


def test_list_tells_each_export_with_its_description() -> None:
    transcript = negotiate(option(wire.LIST))
    assert transcript.sent == GREETING + bytes.fromhex(
        "0003e889045565a9 00000003 00000002 0000000e 00000004 6469736b 61206469736b"
        "0003e889045565a9 00000003 00000002 00000009 00000005 c3a974c3a9"
        "0003e889045565a9 00000003 00000002 00000013 00000004 676f6e65 69742077617320 68657265"
        "0003e889045565a9 00000003 00000001 00000000"
    )
    assert not transcript.opened


@pytest.mark.parametrize(
    "number", [wire.LIST, wire.STARTTLS, wire.STRUCTURED_REPLY, wire.EXTENDED_HEADERS]
)
def test_data_where_none_may_be_is_invalid(number: int) -> None:
    transcript = negotiate(option(number, b"\0"), tls=TLSMode.OFFERED)
    assert_refused(transcript, number, wire.INVALID)
    assert not transcript.secured_after


# EXPORT_NAME


@pytest.mark.parametrize(("flags", "padding"), [(0, PADDING), (1, PADDING), (2, b""), (3, b"")])
def test_export_name_is_answered_by_size_and_flags(flags: int, padding: bytes) -> None:
    transcript = negotiate(option(wire.EXPORT_NAME, b"disk"), flags=wire.u32(flags))
    assert transcript.sent == GREETING + bytes.fromhex("1122334455667788 016d") + padding
    assert transcript.result == NegotiationResult("disk", DISK)


def test_export_name_after_structured_replies_tells_df() -> None:
    transcript = negotiate(STRUCTURED, option(wire.EXPORT_NAME, b"disk"))
    assert transcript.sent.endswith(bytes.fromhex("1122334455667788 01ed"))
    assert transcript.result == NegotiationResult("disk", DISK, ReplyMode.STRUCTURED)


@pytest.mark.parametrize(
    "name", [b"", b"nowhere", b"gone", b"DISK", b"disk\0", b"\xff", b"d" * 4097]
)
def test_export_name_of_what_is_not_there_ends_the_talk_without_an_answer(name: bytes) -> None:
    transcript = negotiate(option(wire.EXPORT_NAME, name))
    assert transcript.sent == GREETING
    assert transcript.error is not None


def test_export_name_after_extended_headers_ends_the_handshake() -> None:
    """A client MUST NOT use it then; its reply has no form that is negotiated."""
    transcript = negotiate(EXTENDED, option(wire.EXPORT_NAME, b"disk"))
    assert kinds(transcript) == [(wire.EXTENDED_HEADERS, wire.ACK)]
    assert "extended headers" in str(transcript.error)


# TLS


def test_starttls_without_tls_is_unsupported() -> None:
    assert_refused(negotiate(STARTTLS), wire.STARTTLS, wire.UNSUP)


@pytest.mark.parametrize("name", OPTIONS)
def test_server_without_tls_never_requires_it(name: str) -> None:
    assert wire.TLS_REQD not in [kind for _, kind in kinds(negotiate(OPTIONS[name]))]


@pytest.mark.parametrize("tls", [TLSMode.OFFERED, TLSMode.REQUIRED])
def test_tls_begins_when_its_acknowledgement_has_been_sent(tls: TLSMode) -> None:
    transcript = negotiate(STARTTLS, go("disk"), tls=tls)
    acknowledged = GREETING + wire.reply(wire.STARTTLS, wire.ACK)
    assert transcript.sent.startswith(acknowledged)
    assert transcript.secured_after == [len(acknowledged)]
    assert transcript.result == NegotiationResult("disk", DISK)


@pytest.mark.parametrize("tls", [TLSMode.OFFERED, TLSMode.REQUIRED])
def test_starttls_again_is_invalid(tls: TLSMode) -> None:
    transcript = negotiate(STARTTLS, STARTTLS, tls=tls)
    assert_refused(transcript, wire.STARTTLS, wire.INVALID)
    assert len(transcript.secured_after) == 1


@pytest.mark.parametrize("name", OPTIONS)
def test_option_before_required_tls_learns_nothing_else(name: str) -> None:
    message = OPTIONS[name]
    transcript = negotiate(message, tls=TLSMode.REQUIRED)
    assert_refused(transcript, int.from_bytes(message[8:12]), wire.TLS_REQD)
    assert not transcript.opened


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("data", [b"?", bytes(64 * 1024 + 1)], ids=["malformed", "too long"])
def test_option_before_required_tls_is_not_looked_at(name: str, data: bytes) -> None:
    number = int.from_bytes(OPTIONS[name][8:12])
    assert_refused(negotiate(option(number, data), tls=TLSMode.REQUIRED), number, wire.TLS_REQD)


@pytest.mark.parametrize("name", OPTIONS)
def test_option_before_offered_tls_is_answered(name: str) -> None:
    assert negotiate(OPTIONS[name], tls=TLSMode.OFFERED).sent == negotiate(OPTIONS[name]).sent


@pytest.mark.parametrize("name", OPTIONS)
def test_option_after_required_tls_is_answered(name: str) -> None:
    transcript = negotiate(STARTTLS, OPTIONS[name], tls=TLSMode.REQUIRED)
    plain = negotiate(OPTIONS[name])
    assert wire.replies(transcript.sent)[1:] == wire.replies(plain.sent)
    assert transcript.result == plain.result


def test_export_name_before_required_tls_ends_the_handshake() -> None:
    transcript = negotiate(option(wire.EXPORT_NAME, b"disk"), tls=TLSMode.REQUIRED)
    assert transcript.sent == GREETING
    assert not transcript.opened
    assert "TLS" in str(transcript.error)


@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_what_was_agreed_upon_before_tls_is_dropped(mode: bytes) -> None:
    transcript = negotiate(mode, set_context("disk"), STARTTLS, go("disk"), tls=TLSMode.OFFERED)
    assert transcript.result == NegotiationResult("disk", DISK)
    assert (wire.GO, wire.INFO_REPLY, INFO_EXPORT) in wire.replies(transcript.sent)


@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_what_was_dropped_by_tls_can_be_agreed_upon_again(mode: bytes) -> None:
    agreed = [mode, set_context("disk")]
    transcript = negotiate(*agreed, STARTTLS, *agreed, go("disk"), tls=TLSMode.OFFERED)
    assert transcript.result is not None
    assert transcript.result == negotiate(*agreed, go("disk")).result
    assert transcript.result.allocation_context_id == 1
