"""Generic netlink messages as literal bytes, of a little-endian machine."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from aiovblk.kernel import link_dead, netlink

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are little-endian")

T = TypeVar("T")

GET_FAMILY = bytes.fromhex(
    "1c000000 1000 0500 01000000 00000000"  # nlmsghdr: 28 bytes, GENL_ID_CTRL, REQUEST | ACK
    "03 01 0000"  # genlmsghdr: CTRL_CMD_GETFAMILY, version 1
    "0800 0200 6e626400"  # CTRL_ATTR_FAMILY_NAME "nbd"
)
FAMILY = bytes.fromhex(
    "2c000000 1000 0000 01000000 e8030000"
    "01 02 0000"  # CTRL_CMD_NEWFAMILY
    "0800 0200 6e626400"
    "0600 0100 1f00 0000"  # CTRL_ATTR_FAMILY_ID 31, padded
    "0800 0300 01000000"
)
DISCONNECT_5 = bytes.fromhex(
    "1c000000 1f00 0500 01000000 00000000"  # to family 31
    "02 01 0000"  # NBD_CMD_DISCONNECT
    "0800 0100 05000000"  # NBD_ATTR_INDEX 5
)


def acknowledged(error: int = 0) -> bytes:
    """Make an nlmsgerr: the error, then the header of the message that it answers."""
    return bytes.fromhex("24000000 0200 0001 01000000 e8030000") + struct.pack("=i16x", -error)


class FakeSocket:
    """A socket that answers each message with the next of its answers, and records the messages."""

    def __init__(self, *answers: list[bytes]) -> None:
        self.answers = list(answers)
        self.pending: list[bytes] = []
        self.sent: list[bytes] = []
        self.arguments: tuple[int, ...] = ()
        self.timeout: float | None = None
        self.options: list[int] = []
        self.joined = 0
        self.address: tuple[int, int] | None = None
        self.closed = False

    def __call__(self, *arguments: int) -> FakeSocket:
        self.arguments = arguments
        return self

    def __enter__(self) -> FakeSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def settimeout(self, seconds: float) -> None:
        self.timeout = seconds

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert level == 270  # SOL_NETLINK
        if option == 1:  # NETLINK_ADD_MEMBERSHIP
            self.joined = value
        else:
            assert value == 1
            self.options.append(option)

    def close(self) -> None:
        self.closed = True

    def bind(self, address: tuple[int, int]) -> None:
        self.address = address

    def send(self, message: bytes) -> None:
        assert not self.pending
        self.sent.append(message)
        self.pending = self.answers.pop(0)

    def recv(self, size: int) -> bytes:
        if not self.pending:
            raise TimeoutError("timed out")
        data = self.pending.pop(0)
        assert len(data) <= size
        return data


def disconnect(monkeypatch: pytest.MonkeyPatch, *answers: list[bytes]) -> FakeSocket:
    fake = FakeSocket(*answers)
    monkeypatch.setattr(socket, "socket", fake)
    try:
        netlink.disconnect(5, timeout=2.5)
    finally:
        monkeypatch.undo()
        assert fake.closed
    return fake


@pytest.mark.parametrize(
    "answers",
    [
        ([FAMILY, acknowledged()], [acknowledged()]),  # each in a datagram of its own
        ([FAMILY + acknowledged()], [acknowledged()]),  # both in one
    ],
)
def test_disconnect_asks_for_the_family_then_names_the_index(
    monkeypatch: pytest.MonkeyPatch, answers: tuple[list[bytes], ...]
) -> None:
    sock = disconnect(monkeypatch, *answers)
    assert sock.sent == [GET_FAMILY, DISCONNECT_5]
    assert sock.arguments == (socket.AF_NETLINK, socket.SOCK_RAW, 16)
    assert (sock.timeout, sock.address, sock.options) == (2.5, (0, 0), [10, 11])
    assert not sock.pending


@pytest.mark.parametrize("error", [errno.EPERM, errno.EINVAL])
def test_refused_disconnect_raises_its_error(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    with pytest.raises(OSError, match="NBD netlink") as caught:
        disconnect(monkeypatch, [FAMILY, acknowledged()], [acknowledged(error)])
    assert caught.value.errno == error


def test_unknown_family_raises_enoent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="NBD netlink"):
        disconnect(monkeypatch, [acknowledged(errno.ENOENT)])


def test_silent_kernel_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeoutError):
        disconnect(monkeypatch, [FAMILY, acknowledged()], [])


def test_attribute_of_no_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    malformed = bytes.fromhex("18000000 1000 0000 01000000 e8030000 01020000 00000000")
    with pytest.raises(OSError, match="malformed") as caught:
        disconnect(monkeypatch, [malformed, acknowledged()])
    assert caught.value.errno == errno.EBADMSG


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "0400 0700"),
        (b"a", "0500 0700 61000000"),
        (b"abcd", "0800 0700 61626364"),
        (b"abcde", "0900 0700 6162636465000000"),
    ],
)
def test_attributes_are_padded_to_four_bytes(value: bytes, message: str) -> None:
    assert netlink._attribute(7, value) == bytes.fromhex(message)
    assert list(netlink.parse_attributes(bytes.fromhex(message) * 2)) == [(7, value)] * 2


def test_reason_of_the_kernel_is_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said = bytes.fromhex(
        "34000000 0200 0003 01000000 e8030000"  # NLMSG_ERROR, CAPPED | ACK_TLVS
        "eaffffff 1c000000 1f00 0500 01000000 00000000"  # -EINVAL, the header that it answers
        "0f00 0100 6e6f2073697a6520736574 00 00"  # NLMSGERR_ATTR_MSG "no size set", padded
    )
    with pytest.raises(OSError, match=r"Invalid argument \(no size set\)"):
        disconnect(monkeypatch, [FAMILY, acknowledged()], [said])


def call(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[], T], answer: bytes = b""
) -> tuple[bytes, T]:
    """Return what a function sends to the family, and its result."""
    fake = FakeSocket([FAMILY, acknowledged()], [*([answer] if answer else []), acknowledged()])
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", fake)
        result = function()
    return fake.sent[1], result


def test_connect_names_all_sockets_and_returns_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = bytes.fromhex("1c000000 1f00 0000 01000000 e8030000 01 01 0000 0800 0100 07000000")
    options: dict[str, Any] = {"size": 1 << 40, "block_size": 4096, "flags": 0x105}
    sent, index = call(
        monkeypatch, lambda: netlink.connect(None, [9, 10], timeout=0, **options), answer
    )
    assert index == 7
    body = (
        "01 01 0000"  # NBD_CMD_CONNECT
        "0c00 0200 0000000000010000"  # SIZE_BYTES
        "0c00 0300 0010000000000000"  # BLOCK_SIZE_BYTES
        "0c00 0500 0501000000000000"  # SERVER_FLAGS
        "1c00 0780"  # SOCKETS, nested
        "0c00 0180 0800 0100 09000000"  # SOCK_ITEM, nested: SOCK_FD
        "0c00 0180 0800 0100 0a000000"
    )
    assert sent[16:] == bytes.fromhex(body)
    sent, index = call(monkeypatch, lambda: netlink.connect(7, [9], timeout=30, **options), answer)
    assert sent.endswith(bytes.fromhex("0c00 0400 1e00000000000000 0800 0100 07000000"))
    options |= {"dead_conn_timeout": 60, "identity": "vol 1"}
    sent, index = call(monkeypatch, lambda: netlink.connect(7, [9], timeout=0, **options), answer)
    assert bytes.fromhex("0c00 0800 3c00000000000000") in sent
    assert bytes.fromhex("0a00 0a00") + b"vol 1\0" + bytes(2) in sent


def test_reconfiguring_names_the_index_and_what_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, _ = call(monkeypatch, lambda: netlink.reconfigure(7, None, size=1 << 40))
    assert sent[16:] == bytes.fromhex("03 01 0000 0800 0100 07000000 0c00 0200 0000000000010000")
    flags = netlink.ClientFlag.DISCONNECT_ON_CLOSE
    sent, _ = call(monkeypatch, lambda: netlink.reconfigure(7, "v", client_flags=flags))
    assert sent[16:] == bytes.fromhex(
        "03 01 0000 0800 0100 07000000"
        "0600 0a00 76000000"  # BACKEND_IDENTIFIER "v"
        "0c00 0600 0200000000000000"
    )
    sent, _ = call(
        monkeypatch, lambda: netlink.reconfigure(7, None, dead_conn_timeout=9, sockets=[5])
    )
    assert sent[16:] == bytes.fromhex(
        "03 01 0000 0800 0100 07000000"
        "0c00 0800 0900000000000000"  # DEAD_CONN_TIMEOUT
        "1000 0780 0c00 0180 0800 0100 05000000"
    )


def test_events_of_dead_connections_name_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    family = bytes.fromhex(
        "4c000000 1000 0000 01000000 e8030000 01 02 0000 0600 0100 1f00 0000"
        "2400 0700"  # CTRL_ATTR_MCAST_GROUPS, nested
        "2000 0100 0800 0200 09000000 1100 0100 6e62645f6d635f67726f757000 000000"  # one: id, name
    )
    death = "1c000000 1f00 0000 00000000 00000000 04 01 0000 0800 0100 %02x000000"
    reply = "1c000000 1f00 0000 00000000 00000000 01 01 0000 0800 0100 05000000"
    fake = FakeSocket([family, acknowledged()])
    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", fake)
        listener = link_dead.LinkDeadListener()
    assert fake.joined == 9
    fake.pending = [bytes.fromhex(death % 5 + reply + death % 7)]
    assert listener.read() == [5, 7]
    listener.close()
    assert fake.closed


def test_availability_is_that_of_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    for answers, there in (([FAMILY, acknowledged()], True), ([acknowledged(errno.ENOENT)], False)):
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", FakeSocket(answers))
            assert netlink.is_available() is there
