"""Fuzz server and client with arbitrary bytes: only a protocol error or a clean end may result.

What each target checks beside that is written in tests/fuzz/targets.py: bounded memory, one reply
per request, and no task that waits forever.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiovblk.protocol import (
    EXTENDED_REQUEST,
    MAX_PAYLOAD,
    REQUEST,
    REQUEST_MAGIC,
    Command,
    ReplyMode,
    Request,
    serialize_request,
)
from aiovblk.protocol.extended_requests import EXTENDED_REQUEST_MAGIC

from ...fuzz.seeds import FLAGS, SEEDS
from ...fuzz.targets import CALLS, CLIENT_SETTINGS, SERVER_SETTINGS, TARGETS
from ...support import wire

each_target = pytest.mark.parametrize("name", TARGETS)

KNOWN = {name: list(seeds()) for name, seeds in SEEDS.items()}

numbers = st.one_of(st.integers(0, 20), st.sampled_from([2**31, 2**32 - 1, 2**63, 2**64 - 1]))


@st.composite
def edits(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A change of some bytes: other ones in place of as many, fewer or more."""
    where, removed = draw(st.floats(0, 1)), draw(st.integers(0, 24))
    inserted = draw(
        st.one_of(
            st.binary(max_size=24),
            st.builds(lambda n, size: (n % 256**size).to_bytes(size), numbers, st.integers(1, 8)),
        )
    )

    def edit(data: bytes) -> bytes:
        at = int(where * len(data))
        return data[:at] + inserted + data[at + removed :]

    return edit


@each_target
@given(data=st.binary(max_size=512))
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    TARGETS[name](data)


@each_target
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_valid_conversations_with_changes(name: str, data: st.DataObject) -> None:
    conversation = data.draw(st.sampled_from(KNOWN[name]))
    for edit in data.draw(st.lists(edits(), min_size=1, max_size=4)):
        conversation = edit(conversation)
    TARGETS[name](conversation)


# Messages that look valid

small = st.binary(max_size=64)
names = st.sampled_from(["", "disk", "gone", "nowhere"])
contents = st.one_of(
    small,
    st.builds(wire.info_request, names, st.lists(st.integers(0, 5), max_size=4)),
    st.builds(
        wire.context_request, names, st.lists(st.sampled_from(["base:allocation", "base:", "x"]))
    ),
)


@st.composite
def messages(draw: st.DrawFn, head: bytes, kinds: st.SearchStrategy[int]) -> bytes:
    """An option or a reply, whose length may be wrong."""
    content = draw(contents)
    length = draw(st.one_of(st.just(len(content)), numbers)) % 2**32
    return head + wire.u32(draw(kinds)) + wire.u32(length) + content


@given(
    setting=st.integers(0, len(SERVER_SETTINGS) - 1),
    options=st.lists(messages(b"IHAVEOPT", st.integers(0, 12)), max_size=8),
)
def test_options_in_any_order(setting: int, options: list[bytes]) -> None:
    TARGETS["server_handshake"](bytes([setting]) + FLAGS + b"".join(options))


@given(setting=st.integers(0, len(CLIENT_SETTINGS) - 1), data=st.data())
def test_option_replies_in_any_order(setting: int, data: st.DataObject) -> None:
    kinds = st.one_of(st.integers(0, 5), st.integers(2**31, 2**31 + 11))
    replies = [
        data.draw(messages(bytes.fromhex("0003e889045565a9") + wire.u32(number), kinds))
        for number in data.draw(st.lists(st.sampled_from([5, 7, 8, 10, 11]), max_size=8))
    ]
    TARGETS["client_handshake"](bytes([setting]) + wire.GREETING + b"".join(replies))


@st.composite
def a_request(draw: st.DrawFn, mode: ReplyMode) -> bytes:
    layout, magic = REQUEST, REQUEST_MAGIC
    if mode is ReplyMode.EXTENDED:
        layout, magic = EXTENDED_REQUEST, EXTENDED_REQUEST_MAGIC
    place = st.one_of(numbers, st.integers(0, 1100).map(lambda block: 512 * block))
    length = draw(place)
    fields = draw(st.integers(0, 63)), draw(st.integers(0, 9)), draw(st.integers(0, 3))
    header = layout.pack(
        magic, *fields, draw(place), length % (2**64 if mode is ReplyMode.EXTENDED else 2**32)
    )
    has_payload = fields[1] == 1 and length < 4096
    return header + bytes(length if has_payload else 0)


@given(setting=st.integers(0, 255), size=st.integers(0, 255), data=st.data())
def test_requests_of_any_kind(setting: int, size: int, data: st.DataObject) -> None:
    requests = data.draw(st.lists(a_request(ReplyMode(setting % 3)), max_size=8))
    TARGETS["requests"](bytes([setting, size]) + b"".join(requests))


@st.composite
def a_reply(draw: st.DrawFn, mode: ReplyMode) -> bytes:
    cookie = wire.u64(draw(st.integers(1, len(CALLS) + 1)))
    if mode is ReplyMode.SIMPLE or (mode is ReplyMode.STRUCTURED and draw(st.booleans())):
        return bytes.fromhex("67446698") + wire.u32(draw(numbers) % 2**32) + cookie + draw(small)
    flags = wire.u16(draw(st.integers(0, 1)))
    kind = wire.u16(draw(st.sampled_from([0, 1, 2, 3, 5, 6, 0x8001, 0x8002, 0xFFFF])))
    offset = draw(st.sampled_from([0, 4096, 8192, 2**64 - 1]))
    payload = draw(
        st.one_of(
            small,
            st.just(wire.u64(offset) + bytes(64)),
            st.just(wire.u64(offset) + wire.u32(4096)),
            st.just(b"\0\0\0\1" + wire.u32(4096) + wire.u32(3)),
            st.just(b"\0\0\0\1\0\0\0\1" + wire.u64(4096) + wire.u64(3)),
        )
    )
    length = draw(st.one_of(st.just(len(payload)), numbers))
    if mode is ReplyMode.STRUCTURED:
        head = bytes.fromhex("668e33ef") + flags + kind + cookie + wire.u32(length % 2**32)
    else:
        head = bytes.fromhex("6e8a278c") + flags + kind + cookie + bytes(8) + wire.u64(length)
    return head + payload


@given(mode=st.sampled_from(ReplyMode), size=st.integers(0, 255), data=st.data())
def test_replies_of_any_kind(mode: ReplyMode, size: int, data: st.DataObject) -> None:
    replies = data.draw(st.lists(a_reply(mode), max_size=8))
    TARGETS["replies"](bytes([mode, size]) + b"".join(replies))


# Wrong lengths

LENGTHS = [MAX_PAYLOAD, MAX_PAYLOAD + 1, 2**31, 2**32 - 1]


@pytest.mark.parametrize("mode", ReplyMode)
@pytest.mark.parametrize("length", LENGTHS)
def test_request_with_a_length_beyond_its_payload(mode: ReplyMode, length: int) -> None:
    header = serialize_request(Request(0, Command.WRITE, 1, 0, length), mode)
    TARGETS["requests"](bytes([mode, 17]) + header + bytes(500))


@pytest.mark.parametrize("kind", [0, 1, 2, 5, 6, 0x8001, 0x7FFF])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 4105, *LENGTHS])
@pytest.mark.parametrize("cookie", [1, 4, 7])
def test_reply_with_a_length_that_differs_from_its_payload(
    kind: int, length: int, cookie: int
) -> None:
    chunk = b"\0\1" + wire.u16(kind) + wire.u64(cookie)
    structured = bytes.fromhex("668e33ef") + chunk + wire.u32(length)
    TARGETS["replies"](bytes([ReplyMode.STRUCTURED, 17]) + structured + bytes(500))
    extended = bytes.fromhex("6e8a278c") + chunk + bytes(8) + wire.u64(length)
    TARGETS["replies"](bytes([ReplyMode.EXTENDED, 17]) + extended + bytes(500))
