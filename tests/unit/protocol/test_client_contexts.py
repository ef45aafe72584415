"""The client's side of metadata contexts: names, queries, lists; and both sides together."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from aiovblk.errors import OptionRefusedError, ProtocolError
from aiovblk.protocol import (
    ClientHandshake,
    ReplyMode,
    ServerHandshake,
    parse_context_selection,
    serialize_context_selection,
)

from ...support import wire
from ...support.client_negotiation import DONE, EXPORT, TAKE_STRUCTURED, negotiate, refusal
from ...support.handshake_transcript import BothTranscripts, transcribe_both
from ...support.server_negotiation import EXPORTS, NAMES
from ...support.wire import context_request, option, reply, u32

PREFIX = "qemu:dirty-bitmap:"
A, B = f"{PREFIX}a", f"{PREFIX}b"
BITMAPS = {"disk": ["a", "b"]}

structured = partial(negotiate, mode=ReplyMode.STRUCTURED)


def together(**options: Any) -> BothTranscripts:
    return transcribe_both(
        partial(ClientHandshake, "disk", **options),
        partial(ServerHandshake, NAMES),
        EXPORTS,
        BITMAPS,
    )


def context(number: int, name: str, about: int = wire.SET_META_CONTEXT) -> bytes:
    return reply(about, wire.META_CONTEXT, u32(number) + name.encode())


SELECTED = reply(wire.SET_META_CONTEXT, wire.ACK)
LISTED = reply(wire.LIST_META_CONTEXT, wire.ACK)


@pytest.mark.parametrize("mode", [ReplyMode.STRUCTURED, ReplyMode.EXTENDED])
@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([A], ["base:allocation", A]),
        ([B, "x:y", A], ["base:allocation", A, B]),
        ([PREFIX], ["base:allocation", A, B]),
        (["qemu:", A], ["base:allocation", A, B]),
        (["base:"], ["base:allocation"]),
        ([f"{PREFIX}other"], ["base:allocation"]),
    ],
)
def test_both_sides_agree_on_contexts(wanted: list[str], found: list[str], mode: ReplyMode) -> None:
    both = together(contexts=wanted, mode=mode)
    assert both.client is not None
    assert both.server is not None
    assert both.client.contexts == both.server.contexts
    assert sorted(both.client.contexts) == found
    assert both.client.offered_contexts is None


@pytest.mark.parametrize("contexts", [(), (A,), ("qemu:",)])
def test_client_learns_what_is_offered_where_it_asks_for_that(contexts: tuple[str, ...]) -> None:
    both = together(contexts=contexts, list_contexts=True)
    assert both.client is not None
    assert both.client.offered_contexts == ("base:allocation", A, B)
    expected = {"base:allocation", *((A, B) if "qemu:" in contexts else contexts)}
    assert both.client.contexts.keys() == expected


def test_simple_replies_have_no_contexts() -> None:
    both = together(contexts=[A, PREFIX], list_contexts=True, mode=ReplyMode.SIMPLE)
    assert both.client is not None
    assert (both.client.contexts, both.client.offered_contexts) == ({}, None)


def test_names_alone_are_selected_without_a_list() -> None:
    transcript = structured(
        TAKE_STRUCTURED, context(5, A), context(6, B), SELECTED, EXPORT, DONE, contexts=[A]
    )
    asked = option(wire.SET_META_CONTEXT, context_request("disk", ["base:allocation", A]))
    assert asked in transcript.sent
    assert transcript.result is not None
    assert transcript.result.contexts == {A: 5}  # the other one was not asked for


def test_server_that_cannot_list_or_select_contexts_has_none() -> None:
    transcript = structured(
        TAKE_STRUCTURED,
        reply(wire.LIST_META_CONTEXT, wire.UNSUP),
        reply(wire.SET_META_CONTEXT, wire.UNSUP),
        EXPORT,
        DONE,
        contexts=[PREFIX],
        list_contexts=True,
    )
    assert transcript.result is not None
    assert (transcript.result.contexts, transcript.result.offered_contexts) == ({}, ())


@pytest.mark.parametrize("kind", [wire.TOO_BIG, wire.UNKNOWN, wire.INVALID, wire.TLS_REQD])
def test_refusal_of_contexts_that_were_asked_for_is_raised(kind: int) -> None:
    refused = reply(wire.SET_META_CONTEXT, kind, b"because")
    assert "because" in str(refusal(structured(TAKE_STRUCTURED, refused, contexts=[A])))
    listing = reply(wire.LIST_META_CONTEXT, kind, b"because")
    error = structured(TAKE_STRUCTURED, listing, contexts=[PREFIX]).error
    assert isinstance(error, OptionRefusedError)


def test_same_id_for_two_contexts_is_a_protocol_error() -> None:
    transcript = structured(
        TAKE_STRUCTURED, context(5, "base:allocation"), context(5, A), SELECTED, contexts=[A]
    )
    assert "same id" in str(transcript.error)


# The payload of a BLOCK_STATUS


def test_selection_is_a_length_and_ids() -> None:
    literal = bytes.fromhex("0000010000000000 00000007 00000009")
    assert serialize_context_selection(1 << 40, [7, 9]) == literal
    assert parse_context_selection(memoryview(literal), 2) == (1 << 40, (7, 9))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        bytes(8),
        bytes(11),
        bytes(13),
        wire.u64(512) + wire.u32(1) * 2,
        wire.u64(512) + b"".join(map(wire.u32, range(4))),
        bytes(1 << 20),
    ],
    ids=["nothing", "cut", "no id", "cut id", "cut id behind", "twice", "too many", "huge"],
)
def test_malformed_selection_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="the payload of a BLOCK_STATUS"):
        parse_context_selection(memoryview(data), 3)
