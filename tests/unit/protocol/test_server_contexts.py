"""The server's side of metadata contexts: base:allocation, and a context for each dirty bitmap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from aiovblk.protocol import MAX_CONTEXTS, Pause, ReplyMode, ServerHandshake, TransmissionFlag
from aiovblk.protocol.contexts import match_any, offered_contexts

from ...support import wire
from ...support.handshake_transcript import Transcript, transcribe
from ...support.server_negotiation import EXPORTS, EXTENDED, NAMES, STRUCTURED, assert_refused
from ...support.wire import context_request, go, option, set_context

PREFIX = "qemu:dirty-bitmap:"
BITMAPS = {"disk": ["a", "b:c", "été"]}
OFFERED = ["base:allocation", f"{PREFIX}a", f"{PREFIX}b:c", f"{PREFIX}été"]


def negotiate(*sent: bytes, bitmaps: Mapping[str, Sequence[str]] = BITMAPS) -> Transcript:
    return transcribe(ServerHandshake(NAMES), wire.FLAGS + b"".join(sent), EXPORTS, bitmaps)


def told(transcript: Transcript, number: int) -> list[tuple[int, str]]:
    """Id and name of each context in the replies to one option, which must end with an ACK."""
    answers = [
        (kind, data) for about, kind, data in wire.replies(transcript.sent) if about == number
    ]
    assert answers.pop() == (wire.ACK, b"")
    assert all(kind == wire.META_CONTEXT for kind, _ in answers)
    return [(int.from_bytes(data[:4]), data[4:].decode()) for _, data in answers]


@pytest.mark.parametrize(
    ("queries", "names"),
    [
        ([], OFFERED),
        (["base:"], OFFERED[:1]),
        (["qemu:"], OFFERED[1:]),
        ([PREFIX], OFFERED[1:]),
        ([f"{PREFIX}b:c"], OFFERED[2:3]),
        ([f"{PREFIX}été", "base:allocation", f"{PREFIX}été"], [OFFERED[0], OFFERED[3]]),
        (["base:", "qemu:", PREFIX], OFFERED),
        ([f"{PREFIX}b:", f"{PREFIX}x", "qemu:allocation-depth", "qemu", "QEMU:", ""], []),
    ],
)
@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_list_has_the_bitmaps_that_match(mode: bytes, queries: list[str], names: list[str]) -> None:
    request = option(wire.LIST_META_CONTEXT, context_request("disk", queries))
    transcript = negotiate(mode, request, go("disk"))
    assert told(transcript, wire.LIST_META_CONTEXT) == [(0, name) for name in names]
    assert transcript.result is not None
    assert transcript.result.contexts == {}  # nothing was selected


@pytest.mark.parametrize(
    ("queries", "contexts"),
    [
        (OFFERED, dict(zip(OFFERED, range(1, 5), strict=True))),
        ([OFFERED[3], OFFERED[1]], {OFFERED[1]: 2, OFFERED[3]: 3}),
        ([OFFERED[1], OFFERED[1], f"{PREFIX}x"], {OFFERED[1]: 2}),
        (["qemu:", PREFIX, "base:", f"{PREFIX}x"], {}),
    ],
)
@pytest.mark.parametrize("mode", [STRUCTURED, EXTENDED])
def test_set_selects_what_is_named(
    mode: bytes, queries: list[str], contexts: dict[str, int]
) -> None:
    transcript = negotiate(mode, set_context("disk", queries), go("disk"))
    assert {name: number for number, name in told(transcript, wire.SET_META_CONTEXT)} == contexts
    assert transcript.result is not None
    assert transcript.result.contexts == contexts


@pytest.mark.parametrize(
    ("number", "queries", "listed"),
    [
        (wire.SET_META_CONTEXT, [], []),
        (wire.SET_META_CONTEXT, ["base:allocation", "x:y"], []),
        (wire.SET_META_CONTEXT, ["base:allocation", f"{PREFIX}a"], ["disk"]),
        (wire.LIST_META_CONTEXT, ["base:"], []),
        (wire.LIST_META_CONTEXT, [], ["disk"]),
        (wire.LIST_META_CONTEXT, ["qemu:"], ["disk"]),
    ],
)
def test_device_is_asked_for_bitmaps_only_where_they_matter(
    number: int, queries: list[str], listed: list[str]
) -> None:
    request = option(number, context_request("disk", queries))
    assert negotiate(STRUCTURED, request).listed == listed


@pytest.mark.parametrize("number", [wire.LIST_META_CONTEXT, wire.SET_META_CONTEXT])
def test_bitmaps_that_cannot_be_listed_are_an_error(number: int) -> None:
    request = option(number, context_request("gone", [f"{PREFIX}a"]))
    assert_refused(negotiate(STRUCTURED, request), number, wire.UNKNOWN)


def test_too_many_contexts_are_refused_and_then_none_is_selected() -> None:
    names = [f"{number:03}" for number in range(MAX_CONTEXTS + 1)]
    queries = [PREFIX + name for name in names]
    some, all_of_them = set_context("disk", queries[1:]), set_context("disk", queries)
    transcript = negotiate(STRUCTURED, some, all_of_them, bitmaps={"disk": names})
    assert_refused(transcript, wire.SET_META_CONTEXT, wire.TOO_BIG)
    transcript = negotiate(STRUCTURED, some, go("disk"), bitmaps={"disk": names})
    assert transcript.result is not None
    assert len(transcript.result.contexts) == MAX_CONTEXTS
    transcript = negotiate(STRUCTURED, some, all_of_them, go("disk"), bitmaps={"disk": names})
    assert transcript.result is not None
    assert transcript.result.contexts == {}


@pytest.mark.parametrize("name", ["x" * (4097 - len(PREFIX)), "\ud800"])
def test_name_that_the_protocol_has_no_room_for_is_not_offered(name: str) -> None:
    fits = "x" * (4096 - len(PREFIX))
    assert offered_contexts([name, fits, fits]) == ["base:allocation", PREFIX + fits]


def test_name_of_a_bitmap_is_no_query() -> None:
    offered = offered_contexts(["a:", "a:b"])
    assert match_any(offered, [f"{PREFIX}a:"]) == [f"{PREFIX}a:"]


def test_long_list_is_sent_in_parts() -> None:
    handshake = ServerHandshake({"disk": ""})
    request = STRUCTURED + option(wire.LIST_META_CONTEXT, context_request("disk"))
    bitmaps = {"disk": [f"{number:04}" + "x" * 900 for number in range(500)]}
    transcript = transcribe(handshake, wire.FLAGS + request, EXPORTS, bitmaps)
    assert len(told(transcript, wire.LIST_META_CONTEXT)) == 501
    parts = handshake.run()
    parts.send(None)
    parts.send(wire.FLAGS)
    parts.send(STRUCTURED[:16])
    parts.send(request[16:32])
    parts.send(request[32:])
    step = parts.send(bitmaps["disk"])
    assert isinstance(step, Pause)
    assert len(handshake.data_to_send()) < 2 * 64 * 1024


@pytest.mark.parametrize(
    ("mode", "selected", "is_offered"),
    [
        (EXTENDED, set_context("disk"), True),
        (EXTENDED, set_context("disk", [f"{PREFIX}a"]), True),
        (EXTENDED, set_context("disk", []), False),
        (EXTENDED, set_context("été"), False),
        (EXTENDED, b"", False),
        (STRUCTURED, set_context("disk"), False),
    ],
)
def test_selecting_contexts_by_payload_is_offered_with_extended_headers(
    mode: bytes, selected: bytes, is_offered: bool
) -> None:
    transcript = negotiate(mode, selected, go("disk"))
    [flags] = [
        int.from_bytes(data[-2:])
        for number, kind, data in wire.replies(transcript.sent)
        if (number, kind) == (wire.GO, wire.INFO_REPLY)
    ]
    assert bool(flags & TransmissionFlag.BLOCK_STAT_PAYLOAD) is is_offered
    assert transcript.result is not None
    assert transcript.result.mode is (
        ReplyMode.EXTENDED if mode == EXTENDED else ReplyMode.STRUCTURED
    )
