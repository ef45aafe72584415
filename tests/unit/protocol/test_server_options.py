"""The server's side of the handshake, against literal bytes: INFO, GO, reply modes, contexts."""

from __future__ import annotations

import pytest

from aiovblk.protocol import NegotiationResult, ReplyMode, ServerHandshake

from ...support import wire
from ...support.handshake_transcript import transcribe
from ...support.server_negotiation import (
    DISK,
    EMPTY,
    EXTENDED,
    FIRST_ONLY,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    INFO_EXPORT_WITH_DF,
    STRUCTURED,
    assert_refused,
    negotiate,
)
from ...support.wire import (
    FLAGS,
    context_request,
    go,
    info_request,
    option,
    set_context,
)

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
    transcript = negotiate(option(number, info_request("disk", wanted)))
    assert wire.replies(transcript.sent) == [(number, kind, data) for kind, data in answer]
    assert transcript.ended is (number == wire.GO)
    assert transcript.result == (NegotiationResult("disk", DISK) if number == wire.GO else None)


def test_description_that_is_empty_is_not_told() -> None:
    transcript = negotiate(go("été", [2]))
    assert (wire.GO, wire.INFO_REPLY, b"\x00\x02") not in wire.replies(transcript.sent)


@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_df_is_told_once_replies_are_structured(mode: bytes) -> None:
    transcript = negotiate(mode, go("disk"))
    assert (wire.GO, wire.INFO_REPLY, INFO_EXPORT_WITH_DF) in wire.replies(transcript.sent)


@pytest.mark.parametrize("name", ["nowhere", "gone", "", "d" * 4096])
@pytest.mark.parametrize("number", [wire.INFO, wire.GO])
def test_info_and_go_of_what_is_not_there_are_unknown(number: int, name: str) -> None:
    transcript = negotiate(option(number, info_request(name)))
    assert_refused(transcript, number, wire.UNKNOWN)
    assert transcript.opened == ["gone"] * (name == "gone")


def test_another_export_can_be_asked_for_after_one_is_unknown() -> None:
    transcript = negotiate(
        go("nowhere"), go("gone"), option(wire.INFO, info_request("été")), go("disk")
    )
    assert transcript.result == NegotiationResult("disk", DISK)
    assert transcript.opened == ["gone", "été", "disk"]


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
    transcript = negotiate(option(number, data))
    assert_refused(transcript, number, wire.INVALID)
    assert not transcript.opened


@pytest.mark.parametrize("number", [wire.INFO, wire.GO, wire.EXPORT_NAME])
def test_empty_name_stands_for_the_only_export(number: int) -> None:
    data = b"" if number == wire.EXPORT_NAME else info_request("", [1])
    transcript = negotiate(option(number, data), names=FIRST_ONLY)
    assert transcript.opened == ["disk"]
    if number != wire.EXPORT_NAME:
        assert (number, *NAME) in wire.replies(transcript.sent)


def test_empty_name_stands_for_the_export_that_has_it() -> None:
    transcript = transcribe(ServerHandshake({"": "", "disk": ""}), FLAGS + go(""), {"": EMPTY})
    assert transcript.result == NegotiationResult("", EMPTY)


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
    transcript = negotiate(*options, go("disk"))
    assert transcript.result == NegotiationResult("disk", DISK, mode)
    for each, (number, kind, data) in zip(options, wire.replies(transcript.sent), strict=False):
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
    transcript = negotiate(first, again)
    assert_refused(transcript, int.from_bytes(again[8:12]), error)
    assert negotiate(first, again, go("disk")).result == negotiate(first, go("disk")).result


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
    transcript = negotiate(mode, request, go("disk"))
    told = [(wire.META_CONTEXT, bytes(4) + b"base:allocation")] * is_listed
    assert [
        (kind, data)
        for number, kind, data in wire.replies(transcript.sent)
        if number == wire.LIST_META_CONTEXT
    ] == [*told, (wire.ACK, b"")]
    assert transcript.result is not None
    assert transcript.result.allocation_context_id is None


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
    transcript = negotiate(mode, set_context("disk", queries), go("disk"))
    told = [(wire.META_CONTEXT, b"\0\0\0\1base:allocation")] * is_set
    assert [
        (kind, data)
        for number, kind, data in wire.replies(transcript.sent)
        if number == wire.SET_META_CONTEXT
    ] == [*told, (wire.ACK, b"")]
    assert transcript.result is not None
    assert transcript.result.allocation_context_id == (1 if is_set else None)


@both_contexts
def test_contexts_before_structured_replies_are_invalid(number: int) -> None:
    request = option(number, context_request("disk", ["base:allocation"]))
    assert_refused(negotiate(request), number, wire.INVALID)


@both_contexts
@pytest.mark.parametrize("name", ["nowhere", ""])
def test_contexts_of_what_is_not_there_are_unknown(number: int, name: str) -> None:
    request = option(number, context_request(name, ["base:allocation"]))
    assert_refused(negotiate(STRUCTURED, request), number, wire.UNKNOWN)


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
    assert_refused(negotiate(STRUCTURED, option(number, data)), number, wire.INVALID)


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
    transcript = negotiate(STRUCTURED, set_context("disk"), replacement, go("disk"))
    assert transcript.result == NegotiationResult("disk", DISK, ReplyMode.STRUCTURED)


@pytest.mark.parametrize(
    "between",
    [EXTENDED, go("nowhere"), option(wire.LIST_META_CONTEXT, context_request("disk")), option(99)],
    ids=["EXTENDED_HEADERS", "GO", "LIST_META_CONTEXT", "unknown option"],
)
def test_contexts_outlive_other_options(between: bytes) -> None:
    transcript = negotiate(STRUCTURED, set_context("disk"), between, go("disk"))
    assert transcript.result is not None
    assert transcript.result.allocation_context_id == 1


def test_contexts_of_one_export_do_not_count_for_another() -> None:
    transcript = negotiate(STRUCTURED, set_context("été"), go("disk"))
    assert transcript.result == NegotiationResult("disk", DISK, ReplyMode.STRUCTURED)


@pytest.mark.parametrize("names", [("", "disk"), ("disk", ""), ("", ""), ("disk", "disk")])
def test_contexts_of_the_default_export_are_those_of_its_name(names: tuple[str, str]) -> None:
    transcript = negotiate(STRUCTURED, set_context(names[0]), go(names[1]), names=FIRST_ONLY)
    assert transcript.result == NegotiationResult(
        "disk", DISK, ReplyMode.STRUCTURED, {"base:allocation": 1}
    )
