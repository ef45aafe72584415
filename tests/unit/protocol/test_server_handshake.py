"""The server's side of the handshake, against literal bytes."""

from __future__ import annotations

import pytest

from aiovblk.protocol import ExportInfo, NegotiationResult, ReplyMode, ServerHandshake, TLSMode
from aiovblk.protocol import TransmissionFlag as Flag

from ...support import wire
from ...support.handshake_transcript import Held, hold
from ...support.wire import (
    FLAGS,
    GREETING,
    PADDING,
    context_request,
    go,
    info_request,
    option,
    set_context,
)

DISK = ExportInfo(0x1122334455667788, Flag(0x16D), 512, 4096, 0x2000000, "a disk")
EMPTY = ExportInfo(1024, Flag(0x01))
NAMES = {"disk": "a disk", "été": "", "gone": "it was here"}
EXPORTS = {"disk": DISK, "été": EMPTY, "gone": None}

FIRST_ONLY = {"disk": "a disk"}

STRUCTURED = option(wire.STRUCTURED_REPLY)
EXTENDED = option(wire.EXTENDED_HEADERS)
STARTTLS = option(wire.STARTTLS)

INFO_EXPORT = bytes.fromhex("0000 1122334455667788 016d")
INFO_EXPORT_WITH_DF = bytes.fromhex("0000 1122334455667788 01ed")
INFO_BLOCK_SIZE = bytes.fromhex("0003 00000200 00001000 02000000")

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


def talk(
    *sent: bytes,
    names: dict[str, str] = NAMES,
    tls: TLSMode = TLSMode.OFF,
    flags: bytes = FLAGS,
) -> Held:
    """Let a client that sends these options talk to a server."""
    return hold(ServerHandshake(names, tls=tls), flags + b"".join(sent), EXPORTS)


def kinds(held: Held) -> list[tuple[int, int]]:
    """Option and type of each reply."""
    return [(number, kind) for number, kind, _ in wire.replies(held.sent)]


def assert_refused(held: Held, number: int, kind: int) -> None:
    """Check that the last option got this error, with a text, and that the talk goes on."""
    refused, error, text = wire.replies(held.sent)[-1]
    assert (refused, error) == (number, kind)
    assert text.decode()
    assert not held.ended
    assert held.left == b""


# Greeting


def test_server_speaks_first() -> None:
    held = hold(ServerHandshake(NAMES), b"")
    assert (held.sent, held.ended) == (GREETING, False)


@pytest.mark.parametrize("flags", range(4))
def test_flags_that_were_offered_are_accepted(flags: int) -> None:
    held = talk(option(wire.ABORT), flags=wire.u32(flags))
    assert held.error is None
    assert held.ended


@pytest.mark.parametrize("flags", [1 << bit for bit in range(2, 32)])
def test_flag_that_was_not_offered_ends_the_talk(flags: int) -> None:
    held = talk(option(wire.ABORT), flags=wire.u32(flags | 3))
    assert held.sent == GREETING
    assert f"{flags | 3:#x}" in str(held.error)


@pytest.mark.parametrize("place", range(8))
def test_option_with_one_wrong_magic_byte_ends_the_talk(place: int) -> None:
    message = bytearray(option(wire.LIST))
    message[place] ^= 0x01
    held = talk(bytes(message))
    assert held.sent == GREETING
    assert "expected an option" in str(held.error)


def test_server_waits_for_each_byte_of_a_talk() -> None:
    whole = STRUCTURED + set_context("disk") + option(wire.LIST) + go("disk", [1, 2])
    complete = talk(whole)
    assert complete.agreement is not None
    for cut in range(len(whole)):
        held = talk(whole[:cut])
        assert not held.ended
        assert complete.sent.startswith(held.sent)


def test_bytes_behind_the_handshake_are_left_to_the_transmission_phase() -> None:
    assert talk(go("disk"), b"\x25\x60\x95\x13").left == b"\x25\x60\x95\x13"


# Options that are none


@pytest.mark.parametrize("number", [0, wire.PEEK_EXPORT, 12, 2**31, 2**32 - 1])
@pytest.mark.parametrize("data", [b"", b"x", bytes(64 * 1024)])
def test_unknown_option_is_unsupported_and_its_data_skipped(number: int, data: bytes) -> None:
    held = talk(option(number, data))
    assert_refused(held, number, wire.UNSUP)
    held = talk(option(number, data), go("disk"))
    assert held.agreement == NegotiationResult("disk", DISK)


@pytest.mark.parametrize("number", [wire.LIST, wire.GO, wire.STARTTLS, wire.SET_META_CONTEXT, 99])
@pytest.mark.parametrize("length", [64 * 1024 + 1, 300_000])
def test_option_that_is_too_long_is_skipped_in_pieces(number: int, length: int) -> None:
    too_long = option(number, b"IHAVEOPT" * (length // 8) + bytes(length % 8))
    held = talk(too_long)
    assert_refused(held, number, wire.TOO_BIG)
    assert held.received[2:] == [64 * 1024] * (length // 65536) + [length % 65536]
    held = talk(too_long, go("disk"))
    assert held.agreement == NegotiationResult("disk", DISK)


def test_export_name_that_is_too_long_ends_the_talk() -> None:
    """No error reply to it exists; the client waits for the size of an export."""
    held = talk(option(wire.EXPORT_NAME, bytes(64 * 1024 + 1)))
    assert held.sent == GREETING
    assert held.error is not None


# ABORT


@pytest.mark.parametrize("data", [b"", b"so long"])
@pytest.mark.parametrize("tls", TLSMode)
def test_abort_is_acknowledged_and_ends_the_talk(data: bytes, tls: TLSMode) -> None:
    held = talk(option(wire.ABORT, data), tls=tls)
    assert held.sent == GREETING + wire.reply(wire.ABORT, wire.ACK)
    assert held.ended
    assert (held.agreement, held.error) == (None, None)


# LIST


def test_list_tells_each_export_with_its_description() -> None:
    held = talk(option(wire.LIST))
    assert held.sent == GREETING + bytes.fromhex(
        "0003e889045565a9 00000003 00000002 0000000e 00000004 6469736b 61206469736b"
        "0003e889045565a9 00000003 00000002 00000009 00000005 c3a974c3a9"
        "0003e889045565a9 00000003 00000002 00000013 00000004 676f6e65 69742077617320 68657265"
        "0003e889045565a9 00000003 00000001 00000000"
    )
    assert not held.opened


@pytest.mark.parametrize(
    "number", [wire.LIST, wire.STARTTLS, wire.STRUCTURED_REPLY, wire.EXTENDED_HEADERS]
)
def test_data_where_none_may_be_is_invalid(number: int) -> None:
    held = talk(option(number, b"\0"), tls=TLSMode.OFFERED)
    assert_refused(held, number, wire.INVALID)
    assert not held.secured_after


# EXPORT_NAME


@pytest.mark.parametrize(("flags", "padding"), [(0, PADDING), (1, PADDING), (2, b""), (3, b"")])
def test_export_name_is_answered_by_size_and_flags(flags: int, padding: bytes) -> None:
    held = talk(option(wire.EXPORT_NAME, b"disk"), flags=wire.u32(flags))
    assert held.sent == GREETING + bytes.fromhex("1122334455667788 016d") + padding
    assert held.agreement == NegotiationResult("disk", DISK)


def test_export_name_after_structured_replies_tells_df() -> None:
    held = talk(STRUCTURED, option(wire.EXPORT_NAME, b"disk"))
    assert held.sent.endswith(bytes.fromhex("1122334455667788 01ed"))
    assert held.agreement == NegotiationResult("disk", DISK, ReplyMode.STRUCTURED)


@pytest.mark.parametrize(
    "name", [b"", b"nowhere", b"gone", b"DISK", b"disk\0", b"\xff", b"d" * 4097]
)
def test_export_name_of_what_is_not_there_ends_the_talk_without_an_answer(name: bytes) -> None:
    held = talk(option(wire.EXPORT_NAME, name))
    assert held.sent == GREETING
    assert held.error is not None


def test_export_name_after_extended_headers_ends_the_talk() -> None:
    """A client MUST NOT use it then; its reply has no form that is negotiated."""
    held = talk(EXTENDED, option(wire.EXPORT_NAME, b"disk"))
    assert kinds(held) == [(wire.EXTENDED_HEADERS, wire.ACK)]
    assert "extended headers" in str(held.error)


# TLS


def test_starttls_without_tls_is_unsupported() -> None:
    assert_refused(talk(STARTTLS), wire.STARTTLS, wire.UNSUP)


@pytest.mark.parametrize("name", OPTIONS)
def test_server_without_tls_never_requires_it(name: str) -> None:
    assert wire.TLS_REQD not in [kind for _, kind in kinds(talk(OPTIONS[name]))]


@pytest.mark.parametrize("tls", [TLSMode.OFFERED, TLSMode.REQUIRED])
def test_tls_begins_when_its_acknowledgement_has_been_sent(tls: TLSMode) -> None:
    held = talk(STARTTLS, go("disk"), tls=tls)
    acknowledged = GREETING + wire.reply(wire.STARTTLS, wire.ACK)
    assert held.sent.startswith(acknowledged)
    assert held.secured_after == [len(acknowledged)]
    assert held.agreement == NegotiationResult("disk", DISK)


@pytest.mark.parametrize("tls", [TLSMode.OFFERED, TLSMode.REQUIRED])
def test_starttls_again_is_invalid(tls: TLSMode) -> None:
    held = talk(STARTTLS, STARTTLS, tls=tls)
    assert_refused(held, wire.STARTTLS, wire.INVALID)
    assert len(held.secured_after) == 1


@pytest.mark.parametrize("name", OPTIONS)
def test_option_before_required_tls_learns_nothing_else(name: str) -> None:
    message = OPTIONS[name]
    held = talk(message, tls=TLSMode.REQUIRED)
    assert_refused(held, int.from_bytes(message[8:12]), wire.TLS_REQD)
    assert not held.opened


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("data", [b"?", bytes(64 * 1024 + 1)], ids=["malformed", "too long"])
def test_option_before_required_tls_is_not_looked_at(name: str, data: bytes) -> None:
    number = int.from_bytes(OPTIONS[name][8:12])
    assert_refused(talk(option(number, data), tls=TLSMode.REQUIRED), number, wire.TLS_REQD)


@pytest.mark.parametrize("name", OPTIONS)
def test_option_before_offered_tls_is_answered(name: str) -> None:
    assert talk(OPTIONS[name], tls=TLSMode.OFFERED).sent == talk(OPTIONS[name]).sent


@pytest.mark.parametrize("name", OPTIONS)
def test_option_after_required_tls_is_answered(name: str) -> None:
    held = talk(STARTTLS, OPTIONS[name], tls=TLSMode.REQUIRED)
    plain = talk(OPTIONS[name])
    assert wire.replies(held.sent)[1:] == wire.replies(plain.sent)
    assert held.agreement == plain.agreement


def test_export_name_before_required_tls_ends_the_talk() -> None:
    held = talk(option(wire.EXPORT_NAME, b"disk"), tls=TLSMode.REQUIRED)
    assert held.sent == GREETING
    assert not held.opened
    assert "TLS" in str(held.error)


@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_what_was_agreed_upon_before_tls_is_dropped(mode: bytes) -> None:
    held = talk(mode, set_context("disk"), STARTTLS, go("disk"), tls=TLSMode.OFFERED)
    assert held.agreement == NegotiationResult("disk", DISK)
    assert (wire.GO, wire.INFO_REPLY, INFO_EXPORT) in wire.replies(held.sent)


@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_what_was_dropped_by_tls_can_be_agreed_upon_again(mode: bytes) -> None:
    agreed = [mode, set_context("disk")]
    held = talk(*agreed, STARTTLS, *agreed, go("disk"), tls=TLSMode.OFFERED)
    assert held.agreement is not None
    assert held.agreement == talk(*agreed, go("disk")).agreement
    assert held.agreement.allocation_context_id == 1


# INFO and GO

ANSWER = [(wire.INFO_REPLY, INFO_EXPORT)]
BLOCK_SIZE = (wire.INFO_REPLY, INFO_BLOCK_SIZE)
NAME = (wire.INFO_REPLY, b"\x00\x01disk")
DESCRIPTION = (wire.INFO_REPLY, b"\x00\x02a disk")
DONE = (wire.ACK, b"")


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [
        ([], [*ANSWER, DONE]),
        ([0], [*ANSWER, DONE]),
        ([3], [*ANSWER, BLOCK_SIZE, DONE]),
        ([1], [*ANSWER, NAME, DONE]),
        ([2], [*ANSWER, DESCRIPTION, DONE]),
        ([3, 2, 1, 0], [*ANSWER, BLOCK_SIZE, NAME, DESCRIPTION, DONE]),
        ([1, 1, 1], [*ANSWER, NAME, DONE]),
        ([4, 0xFFFF], [*ANSWER, DONE]),
    ],
)
@pytest.mark.parametrize("number", [wire.INFO, wire.GO])
def test_info_and_go_tell_what_is_asked_for(
    number: int, wanted: list[int], answer: list[tuple[int, bytes]]
) -> None:
    held = talk(option(number, info_request("disk", wanted)))
    assert wire.replies(held.sent) == [(number, kind, data) for kind, data in answer]
    assert held.ended is (number == wire.GO)
    assert held.agreement == (NegotiationResult("disk", DISK) if number == wire.GO else None)


def test_description_that_is_empty_is_not_told() -> None:
    held = talk(go("été", [2]))
    assert (wire.GO, wire.INFO_REPLY, b"\x00\x02") not in wire.replies(held.sent)


@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_df_is_told_once_replies_are_structured(mode: bytes) -> None:
    held = talk(mode, go("disk"))
    assert (wire.GO, wire.INFO_REPLY, INFO_EXPORT_WITH_DF) in wire.replies(held.sent)


@pytest.mark.parametrize("name", ["nowhere", "gone", "", "d" * 4096])
@pytest.mark.parametrize("number", [wire.INFO, wire.GO])
def test_info_and_go_of_what_is_not_there_are_unknown(number: int, name: str) -> None:
    held = talk(option(number, info_request(name)))
    assert_refused(held, number, wire.UNKNOWN)
    assert held.opened == ["gone"] * (name == "gone")


def test_another_export_can_be_asked_for_after_one_is_unknown() -> None:
    held = talk(go("nowhere"), go("gone"), option(wire.INFO, info_request("été")), go("disk"))
    assert held.agreement == NegotiationResult("disk", DISK)
    assert held.opened == ["gone", "été", "disk"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\0",
        b"\0\0\0\0\0",
        b"\0\0\0\4dis",
        b"\0\0\0\4disk\0",
        b"\0\0\0\4disk\0\1\0",
        b"\0\0\0\4disk\xff\xff\0\0",
        b"\0\0\0\4disk\0\0x",
        b"\0\0\0\5disk\0\0",
        b"\xff\xff\xff\xffdisk\0\0",
        wire.string(b"d" * 4097) + b"\0\0",
        wire.string(b"\xc3\x28") + b"\0\0",
        wire.string(b"\xed\xa0\x80") + b"\0\0",
    ],
)
@pytest.mark.parametrize("number", [wire.INFO, wire.GO])
def test_malformed_info_and_go_are_invalid(number: int, data: bytes) -> None:
    held = talk(option(number, data))
    assert_refused(held, number, wire.INVALID)
    assert not held.opened


@pytest.mark.parametrize("number", [wire.INFO, wire.GO, wire.EXPORT_NAME])
def test_empty_name_stands_for_the_only_export(number: int) -> None:
    data = b"" if number == wire.EXPORT_NAME else info_request("", [1])
    held = talk(option(number, data), names=FIRST_ONLY)
    assert held.opened == ["disk"]
    if number != wire.EXPORT_NAME:
        assert (number, *NAME) in wire.replies(held.sent)


def test_empty_name_stands_for_the_export_that_has_it() -> None:
    held = hold(ServerHandshake({"": "", "disk": ""}), FLAGS + go(""), {"": EMPTY})
    assert held.agreement == NegotiationResult("", EMPTY)


# STRUCTURED_REPLY and EXTENDED_HEADERS


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ([], ReplyMode.SIMPLE),
        ([STRUCTURED], ReplyMode.STRUCTURED),
        ([EXTENDED], ReplyMode.EXTENDED),
        ([STRUCTURED, EXTENDED], ReplyMode.EXTENDED),
    ],
)
def test_modes_are_acknowledged(options: list[bytes], mode: ReplyMode) -> None:
    held = talk(*options, go("disk"))
    assert held.agreement == NegotiationResult("disk", DISK, mode)
    for each, (number, kind, data) in zip(options, wire.replies(held.sent), strict=False):
        assert each == option(number)
        assert (kind, data) == (wire.ACK, b"")


@pytest.mark.parametrize(
    ("first", "again", "error"),
    [
        (STRUCTURED, STRUCTURED, wire.INVALID),
        (EXTENDED, EXTENDED, wire.INVALID),
        (EXTENDED, STRUCTURED, wire.EXT_HEADER_REQD),
    ],
)
def test_mode_that_is_not_more_than_before_is_refused(
    first: bytes, again: bytes, error: int
) -> None:
    held = talk(first, again)
    assert_refused(held, int.from_bytes(again[8:12]), error)
    assert talk(first, again, go("disk")).agreement == talk(first, go("disk")).agreement


# LIST_META_CONTEXT and SET_META_CONTEXT

both_contexts = pytest.mark.parametrize("number", [wire.LIST_META_CONTEXT, wire.SET_META_CONTEXT])


@pytest.mark.parametrize(
    ("queries", "is_listed"),
    [
        ([], True),
        (["base:"], True),
        (["base:allocation"], True),
        (["other:", "base:", "base:allocation"], True),
        (["base"], False),
        (["base:alloc"], False),
        (["other:allocation"], False),
        ([""], False),
    ],
)
@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_list_meta_context_tells_what_matches(
    mode: bytes, queries: list[str], is_listed: bool
) -> None:
    request = option(wire.LIST_META_CONTEXT, context_request("disk", queries))
    held = talk(mode, request, go("disk"))
    told = [(wire.META_CONTEXT, bytes(4) + b"base:allocation")] * is_listed
    assert [
        (kind, data)
        for number, kind, data in wire.replies(held.sent)
        if number == wire.LIST_META_CONTEXT
    ] == [*told, (wire.ACK, b"")]
    assert held.agreement is not None
    assert held.agreement.allocation_context_id is None


@pytest.mark.parametrize(
    ("queries", "is_set"),
    [
        (["base:allocation"], True),
        (["other:x", "base:allocation", "base:allocation"], True),
        ([], False),
        (["base:"], False),
        (["base:allocation "], False),
        (["qemu:dirty-bitmap:x"], False),
    ],
)
@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_set_meta_context_selects_what_is_named(
    mode: bytes, queries: list[str], is_set: bool
) -> None:
    held = talk(mode, set_context("disk", queries), go("disk"))
    told = [(wire.META_CONTEXT, b"\0\0\0\1base:allocation")] * is_set
    assert [
        (kind, data)
        for number, kind, data in wire.replies(held.sent)
        if number == wire.SET_META_CONTEXT
    ] == [*told, (wire.ACK, b"")]
    assert held.agreement is not None
    assert held.agreement.allocation_context_id == (1 if is_set else None)


@both_contexts
def test_contexts_before_structured_replies_are_invalid(number: int) -> None:
    request = option(number, context_request("disk", ["base:allocation"]))
    assert_refused(talk(request), number, wire.INVALID)


@both_contexts
@pytest.mark.parametrize("name", ["nowhere", ""])
def test_contexts_of_what_is_not_there_are_unknown(number: int, name: str) -> None:
    request = option(number, context_request(name, ["base:allocation"]))
    assert_refused(talk(STRUCTURED, request), number, wire.UNKNOWN)


@both_contexts
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\4disk",
        b"\0\0\0\4disk\0\0\0",
        b"\0\0\0\4disk\0\0\0\1",
        b"\0\0\0\4disk\xff\xff\xff\xff",
        b"\0\0\0\4disk\0\0\0\0x",
        b"\0\0\0\4disk\0\0\0\1\0\0\0\2x",
        b"\0\0\0\4disk\0\0\0\1" + wire.string(b"\xff"),
        b"\0\0\0\4disk\0\0\0\1" + wire.string(b"x" * 4097),
    ],
)
def test_malformed_contexts_are_invalid(number: int, data: bytes) -> None:
    assert_refused(talk(STRUCTURED, option(number, data)), number, wire.INVALID)


@pytest.mark.parametrize(
    "replacement",
    [
        set_context("disk", []),
        set_context("disk", ["other:"]),
        set_context("nowhere"),
        set_context("été"),
        option(wire.SET_META_CONTEXT),
        option(wire.SET_META_CONTEXT, wire.string(b"\xff")),
        option(wire.SET_META_CONTEXT, bytes(64 * 1024 + 1)),
    ],
    ids=["none", "another", "unknown export", "other export", "no data", "malformed", "too long"],
)
def test_set_meta_context_replaces_all_even_when_it_fails(replacement: bytes) -> None:
    held = talk(STRUCTURED, set_context("disk"), replacement, go("disk"))
    assert held.agreement == NegotiationResult("disk", DISK, ReplyMode.STRUCTURED)


@pytest.mark.parametrize(
    "between",
    [EXTENDED, go("nowhere"), option(wire.LIST_META_CONTEXT, context_request("disk")), option(99)],
    ids=["EXTENDED_HEADERS", "GO", "LIST_META_CONTEXT", "unknown option"],
)
def test_contexts_outlive_other_options(between: bytes) -> None:
    held = talk(STRUCTURED, set_context("disk"), between, go("disk"))
    assert held.agreement is not None
    assert held.agreement.allocation_context_id == 1


def test_contexts_of_one_export_do_not_count_for_another() -> None:
    held = talk(STRUCTURED, set_context("été"), go("disk"))
    assert held.agreement == NegotiationResult("disk", DISK, ReplyMode.STRUCTURED)


@pytest.mark.parametrize("names", [("", "disk"), ("disk", ""), ("", ""), ("disk", "disk")])
def test_contexts_of_the_default_export_are_those_of_its_name(names: tuple[str, str]) -> None:
    held = talk(STRUCTURED, set_context(names[0]), go(names[1]), names=FIRST_ONLY)
    assert held.agreement == NegotiationResult("disk", DISK, ReplyMode.STRUCTURED, 1)
