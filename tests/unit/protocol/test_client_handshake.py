"""The client's side of the handshake, against literal bytes."""

from __future__ import annotations

import pytest

from aiovblk.errors import TLSRequiredError, TLSUnavailableError
from aiovblk.protocol import (
    ClientHandshake,
    ExportInfo,
    NegotiationResult,
    OptionReply,
    ReplyMode,
    TransmissionFlag,
)

from ...support import wire
from ...support.client_negotiation import (
    ASK_CONTEXT,
    ASK_GO,
    CONTEXT,
    CONTEXTS_DONE,
    DONE,
    EXPORT,
    EXTENDED,
    INFO,
    INFO_EXPORT,
    REFUSE_EXTENDED,
    REFUSE_STRUCTURED,
    SIMPLE,
    STRUCTURED,
    TAKE_EXTENDED,
    TAKE_STRUCTURED,
    WHOLE,
    negotiate,
    refusal,
    simple_negotiate,
)
from ...support.handshake_transcript import transcribe
from ...support.wire import (
    FLAGS,
    GREETING,
    INFO_REPLY,
    PADDING,
    option,
    reply,
)

# Greeting


@pytest.mark.parametrize("place", range(18))
def test_greeting_with_one_wrong_byte_is_no_server(place: int) -> None:
    greeting = bytearray(b"NBDMAGICIHAVEOPT\0\1")
    greeting[place] ^= 0x01
    transcript = negotiate(greeting=bytes(greeting))
    if place == 16:  # handshake flags that are not known
        assert transcript.error is None
    else:
        assert transcript.error is not None
        assert transcript.sent == b""


def test_oldstyle_server_is_named_as_what_it_is() -> None:
    greeting = b"NBDMAGIC" + bytes.fromhex("0000420281861253") + bytes(8 + 4 + 124)
    assert "oldstyle" in str(negotiate(greeting=greeting).error)


@pytest.mark.parametrize("flags", [0, 2])
def test_server_without_fixed_newstyle_is_refused(flags: int) -> None:
    transcript = negotiate(greeting=GREETING[:16] + wire.u16(flags))
    assert transcript.sent == b""
    assert "fixed newstyle" in str(transcript.error)


@pytest.mark.parametrize(("offered", "answered"), [(1, 1), (3, 3), (0xFFFF, 3), (0xFFFD, 1)])
def test_client_answers_with_flags_that_it_knows(offered: int, answered: int) -> None:
    transcript = negotiate(greeting=GREETING[:16] + wire.u16(offered))
    assert transcript.sent.startswith(wire.u32(answered) + b"IHAVEOPT")


def test_client_waits_for_each_byte_of_a_handshake() -> None:
    whole = GREETING + WHOLE
    complete = negotiate(WHOLE)
    assert complete.result == NegotiationResult("disk", INFO, EXTENDED, {"base:allocation": 7})
    for cut in range(len(whole)):
        transcript = transcribe(ClientHandshake("disk"), whole[:cut])
        assert not transcript.ended
        assert complete.sent.startswith(transcript.sent)


def test_bytes_behind_the_handshake_are_left_to_the_transmission_phase() -> None:
    assert negotiate(WHOLE, b"\x67\x44\x66\x98").left == b"\x67\x44\x66\x98"


# Modes


@pytest.mark.parametrize(
    ("answers", "options", "mode"),
    [
        ([TAKE_EXTENDED], [wire.EXTENDED_HEADERS], EXTENDED),
        (
            [REFUSE_EXTENDED, TAKE_STRUCTURED],
            [wire.EXTENDED_HEADERS, wire.STRUCTURED_REPLY],
            STRUCTURED,
        ),
        (
            [REFUSE_EXTENDED, REFUSE_STRUCTURED],
            [wire.EXTENDED_HEADERS, wire.STRUCTURED_REPLY],
            SIMPLE,
        ),
    ],
)
def test_client_takes_the_most_that_the_server_has(
    answers: list[bytes], options: list[int], mode: ReplyMode
) -> None:
    transcript = negotiate(*answers, EXPORT, DONE, allocation=False)
    assert transcript.sent == FLAGS + b"".join(map(option, options)) + ASK_GO
    assert transcript.result == NegotiationResult("disk", INFO, mode)


@pytest.mark.parametrize(
    ("most", "options"),
    [
        (SIMPLE, b""),
        (STRUCTURED, option(wire.STRUCTURED_REPLY)),
        (EXTENDED, option(wire.EXTENDED_HEADERS)),
    ],
)
def test_client_asks_for_no_more_than_it_should(most: ReplyMode, options: bytes) -> None:
    answers = b"" if most is SIMPLE else reply(int.from_bytes(options[8:12]), wire.ACK)
    transcript = negotiate(answers, EXPORT, DONE, mode=most, allocation=False)
    assert transcript.sent == FLAGS + options + ASK_GO
    assert transcript.result == NegotiationResult("disk", INFO, most)


@pytest.mark.parametrize("error", [wire.POLICY, wire.INVALID, wire.SHUTDOWN, 0x80000000, 2**32 - 1])
def test_mode_that_is_refused_for_whatever_reason_is_done_without(error: int) -> None:
    refusals = [reply(number, error) for number in (wire.EXTENDED_HEADERS, wire.STRUCTURED_REPLY)]
    transcript = negotiate(*refusals, EXPORT, DONE)
    assert transcript.result == NegotiationResult("disk", INFO)


# Allocation


@pytest.mark.parametrize(
    ("answers", "number"),
    [
        ([CONTEXT, CONTEXTS_DONE], 7),
        ([CONTEXTS_DONE], None),
        ([reply(wire.SET_META_CONTEXT, wire.INVALID)], None),
        ([CONTEXT, reply(wire.SET_META_CONTEXT, wire.UNKNOWN)], None),
        (
            [reply(wire.SET_META_CONTEXT, wire.META_CONTEXT, b"\0\0\0\1other:x"), CONTEXTS_DONE],
            None,
        ),
        (
            [
                reply(wire.SET_META_CONTEXT, wire.META_CONTEXT, b"\0\0\0\1other:x"),
                CONTEXT,
                CONTEXTS_DONE,
            ],
            7,
        ),
        ([reply(wire.SET_META_CONTEXT, 99, b"?"), CONTEXT, CONTEXTS_DONE], 7),
        (
            [
                reply(wire.SET_META_CONTEXT, wire.META_CONTEXT, bytes(4) + b"base:allocation"),
                CONTEXTS_DONE,
            ],
            0,
        ),
    ],
)
def test_allocation_has_the_number_that_the_server_gives_it(
    answers: list[bytes], number: int | None
) -> None:
    transcript = negotiate(TAKE_EXTENDED, *answers, EXPORT, DONE)
    assert transcript.sent == FLAGS + option(wire.EXTENDED_HEADERS) + ASK_CONTEXT + ASK_GO
    contexts = {} if number is None else {"base:allocation": number}
    assert transcript.result == NegotiationResult("disk", INFO, EXTENDED, contexts)


def test_context_without_a_number_is_a_protocol_error() -> None:
    answer = reply(wire.SET_META_CONTEXT, wire.META_CONTEXT, b"\0\0\0")
    transcript = negotiate(TAKE_EXTENDED, answer, CONTEXTS_DONE)
    assert "too early" in str(transcript.error)


def test_allocation_is_not_asked_for_without_structured_replies() -> None:
    transcript = negotiate(REFUSE_EXTENDED, REFUSE_STRUCTURED, EXPORT, DONE)
    assert ASK_CONTEXT not in transcript.sent
    assert transcript.result == NegotiationResult("disk", INFO)


# TLS


def test_tls_begins_before_anything_else_is_asked_for() -> None:
    transcript = negotiate(reply(wire.STARTTLS, wire.ACK), WHOLE, tls=True)
    before = FLAGS + option(wire.STARTTLS)
    assert transcript.sent.startswith(before)
    assert transcript.secured_after == [len(before)]
    assert transcript.result == NegotiationResult("disk", INFO, EXTENDED, {"base:allocation": 7})


@pytest.mark.parametrize("error", [wire.UNSUP, wire.POLICY, wire.INVALID])
def test_server_that_has_no_tls_is_left_where_it_is_wanted(error: int) -> None:
    transcript = negotiate(reply(wire.STARTTLS, error, b"not here"), WHOLE, tls=True)
    assert transcript.sent == FLAGS + option(wire.STARTTLS)
    assert not transcript.secured_after
    assert isinstance(transcript.error, TLSUnavailableError)
    assert str(transcript.error).startswith(
        "the server refused STARTTLS: not here; it has no TLS: "
    )


@pytest.mark.parametrize("mode", ReplyMode)
def test_server_that_wants_tls_is_left_where_there_is_none(mode: ReplyMode) -> None:
    number = {SIMPLE: wire.GO, STRUCTURED: wire.STRUCTURED_REPLY, EXTENDED: wire.EXTENDED_HEADERS}
    transcript = negotiate(reply(number[mode], wire.TLS_REQD), mode=mode)
    assert refusal(transcript).reply == OptionReply.ERR_TLS_REQD
    assert isinstance(transcript.error, TLSRequiredError)
    assert "use nbds:// in place of nbd://" in str(transcript.error)
    assert "TLS_REQD" in str(transcript.error)


# GO


def test_all_that_the_server_tells_is_understood() -> None:
    transcript = simple_negotiate(
        reply(wire.GO, INFO_REPLY, b"\0\2" + "für alle".encode()),
        reply(wire.GO, INFO_REPLY, bytes.fromhex("0003 00000200 00010000 00100000")),
        reply(wire.GO, INFO_REPLY, b"\0\1disk"),
        reply(wire.GO, INFO_REPLY, b"\x12\x34 of tomorrow"),
        reply(wire.GO, INFO_REPLY, bytes.fromhex("0000 7fffffffffffffff ffff")),
        reply(wire.GO, 99, b"not known either"),
        DONE,
    )
    flags = TransmissionFlag(0xFFFF)
    info = ExportInfo(2**63 - 1, flags, 512, 65536, 1 << 20, "für alle")
    assert transcript.sent == FLAGS + ASK_GO
    assert transcript.result == NegotiationResult("disk", info)


def test_what_the_server_does_not_tell_has_the_defaults_of_the_specification() -> None:
    result = simple_negotiate(EXPORT, DONE).result
    assert result is not None
    info = result.info
    assert (info.minimum_block, info.preferred_block, info.maximum_payload) == (1, 4096, 32 << 20)
    assert info.description == ""


@pytest.mark.parametrize(
    ("told", "understood"),
    [
        ((1, 1, 1), (1, 1, 1)),
        ((65536, 65536, 65536), (65536, 65536, 65536)),
        ((512, 4096, 2**32 - 1), (512, 4096, 32 << 20)),
        ((1, 2**32 - 1, (32 << 20) + 1), (1, 2**32 - 1, 32 << 20)),
    ],
)
def test_block_sizes_that_can_be_are_taken(
    told: tuple[int, ...], understood: tuple[int, ...]
) -> None:
    sizes = reply(wire.GO, INFO_REPLY, b"\0\3" + b"".join(map(wire.u32, told)))
    result = simple_negotiate(EXPORT, sizes, DONE).result
    assert result is not None
    info = result.info
    assert (info.minimum_block, info.preferred_block, info.maximum_payload) == understood


@pytest.mark.parametrize(
    "told",
    [
        (0, 4096, 4096),
        (3, 4096, 4096),
        (131072, 131072, 131072),
        (4096, 512, 4096),
        (512, 512, 511),
    ],
)
def test_block_sizes_that_cannot_be_are_a_protocol_error(told: tuple[int, ...]) -> None:
    sizes = reply(wire.GO, INFO_REPLY, b"\0\3" + b"".join(map(wire.u32, told)))
    assert "block sizes" in str(simple_negotiate(EXPORT, sizes, DONE).error)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        INFO_EXPORT[:-1],
        bytes.fromhex("0000 8000000000000000 0001"),
        b"\0\3" + bytes(11),
        b"\0\2\xff",
        b"\0\2" + b"d" * 4097,
    ],
)
def test_malformed_information_is_a_protocol_error(data: bytes) -> None:
    transcript = simple_negotiate(EXPORT, reply(wire.GO, INFO_REPLY, data), DONE)
    assert transcript.error is not None


def test_go_that_tells_no_size_is_a_protocol_error() -> None:
    assert "size" in str(simple_negotiate(DONE).error)


REFUSALS = [kind for kind in OptionReply if kind >> 31 and kind is not OptionReply.ERR_UNSUP]


@pytest.mark.parametrize("error", REFUSALS)
def test_refused_export_is_told_with_the_servers_reason(error: OptionReply) -> None:
    transcript = simple_negotiate(EXPORT, reply(wire.GO, error, "näh".encode()))
    assert str(refusal(transcript)).startswith("the server refused GO: näh")
    assert refusal(transcript).reply == error
    assert transcript.sent == FLAGS + ASK_GO


@pytest.mark.parametrize(
    ("error", "text", "told"),
    [
        (wire.UNKNOWN, b"", "ERR_UNKNOWN"),
        (0x80001234, b"", "error 0x80001234"),
        (0x80001234, b"new", "new"),
        (wire.UNKNOWN, b"\xff?", "\N{REPLACEMENT CHARACTER}?"),
        (wire.UNKNOWN, b"a" * 5000, "a" * 300 + "..."),
        (
            wire.UNKNOWN,
            b"\x1b[2Jno\r\nforged\x9b",
            r"\x1b[2Jno\r\nforged" + "\N{REPLACEMENT CHARACTER}",
        ),
        (wire.UNKNOWN, "\u202ekcart".encode(), r"\u202ekcart"),
    ],
)
def test_refusal_without_a_readable_reason_is_told_as_well_as_can_be(
    error: int, text: bytes, told: str
) -> None:
    transcript = simple_negotiate(reply(wire.GO, error, text))
    assert str(refusal(transcript)) == f"the server refused GO: {told}"


# EXPORT_NAME

NO_GO = reply(wire.GO, wire.UNSUP)
NAMED = bytes.fromhex("0000000000100000 0105")


@pytest.mark.parametrize(("offered", "padding"), [(1, PADDING), (3, b"")])
@pytest.mark.parametrize("mode", [SIMPLE, STRUCTURED])
def test_server_without_go_is_asked_by_export_name(
    mode: ReplyMode, offered: int, padding: bytes
) -> None:
    greeting = GREETING[:16] + wire.u16(offered)
    answers = [TAKE_STRUCTURED] * (mode is STRUCTURED)
    transcript = negotiate(
        *answers, NO_GO, NAMED, padding, b"rest", greeting=greeting, mode=mode, allocation=False
    )
    assert transcript.sent.endswith(ASK_GO + option(wire.EXPORT_NAME, b"disk"))
    assert transcript.result == NegotiationResult("disk", INFO, mode)
    assert transcript.left == b"rest"


@pytest.mark.parametrize("cut", [0, 9, 10, 10 + 123])
def test_client_waits_for_the_padding(cut: int) -> None:
    transcript = negotiate(
        NO_GO, (NAMED + PADDING)[:cut], greeting=GREETING[:16] + b"\0\1", mode=SIMPLE
    )
    assert not transcript.ended


def test_export_name_with_a_size_that_cannot_be_is_a_protocol_error() -> None:
    assert "size" in str(simple_negotiate(NO_GO, b"\xff" * 10).error)


def test_server_with_extended_headers_must_have_go() -> None:
    transcript = negotiate(TAKE_EXTENDED, NO_GO, NAMED, allocation=False)
    assert refusal(transcript).reply == OptionReply.ERR_UNSUP
    assert transcript.sent.endswith(ASK_GO)
