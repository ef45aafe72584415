"""TLS of the server: certificates, required or offered, injected bytes, timeouts."""

from __future__ import annotations

import asyncio
import ssl
import struct
from pathlib import Path

import pytest

from aiovblk import ProtocolError, connect, tls
from aiovblk.protocol import Option, OptionReply
from aiovblk.protocol.options import serialize_info_request, serialize_option
from aiovblk.storage import MemoryDevice
from aiovblk.stream import Slice, handshake
from tests.support.certificates import make_certificates
from tests.support.timers import LATER, Timers

from ...support.network_client import (
    MIB,
    NetworkClient,
    PuppetDisk,
    connected,
    serve,
    until_left,
    using,
)

GO_DISK = serialize_info_request("disk", [])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("others"))


def disk() -> dict[str, MemoryDevice]:
    return {"disk": MemoryDevice(MIB)}


def uri(path: Path, certificates: Path) -> str:
    return f"nbds+unix:///disk?socket={path}&tls-certificates={certificates}"


async def start_tls(client: NetworkClient, certificates: Path) -> None:
    assert await client.ask(Option.STARTTLS) == [(OptionReply.ACK, b"")]
    await client.start_tls(tls.client_context(certificates))


async def reply_types(client: NetworkClient, option: int, data: bytes = b"") -> int:
    return (await client.ask(option, data))[-1][0]


@pytest.mark.parametrize("verify", [False, True])
async def test_client_with_a_certificate_is_served(
    path: Path, certificates: Path, verify: bool
) -> None:
    context = tls.server_context(certificates, verify_peer=verify)
    async with serve(disk(), unix=path, tls=context) as server:
        assert server.uris == [f"nbds+unix:///disk?socket={path}"]
        async with connect(uri(path, certificates)) as remote:
            await remote.write(0, b"\1" * MIB)
            assert await remote.read(0, MIB) == b"\1" * MIB


async def test_tls_over_tcp(certificates: Path) -> None:
    context = tls.server_context(certificates)
    async with serve(disk(), host="localhost", port=0, tls=context) as server:
        [found] = server.uris
        found += f"?tls-certificates={certificates}&tls-hostname=localhost"
        async with connect(found) as remote:
            assert await remote.read(0, 512) == bytes(512)


@pytest.mark.parametrize("certificate", ["none", "another"])
async def test_client_without_the_right_certificate_is_not_served(
    path: Path,
    certificates: Path,
    others: Path,
    certificate: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trusting = tmp_path / "pki"
    trusting.mkdir()
    (trusting / "ca-cert.pem").write_bytes((certificates / "ca-cert.pem").read_bytes())
    if certificate == "another":
        for name in ("client-cert.pem", "client-key.pem"):
            (trusting / name).write_bytes((others / name).read_bytes())
    context = tls.server_context(certificates, verify_peer=True)
    async with serve(disk(), unix=path, tls=context) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with connect(uri(path, trusting)) as remote:
                await remote.read(0, 512)  # TLS 1.3 lets a client believe that it is in
        await until_left(server)
    assert "the handshake failed" in caplog.text


async def test_where_tls_is_required_options_are_refused_without(
    path: Path, certificates: Path
) -> None:
    context = tls.server_context(certificates)
    async with serve(disk(), unix=path, tls=context), connected(path) as client:
        await client.greet()
        for option in (Option.LIST, Option.GO, Option.INFO, Option.STRUCTURED_REPLY, 99):
            assert await reply_types(client, option, GO_DISK) == OptionReply.ERR_TLS_REQD
        await start_tls(client, certificates)
        await client.go("disk")
        assert await client.read(0, 512) == bytes(512)


async def test_where_tls_is_required_export_name_closes(path: Path, certificates: Path) -> None:
    context = tls.server_context(certificates)
    async with serve(disk(), unix=path, tls=context), connected(path) as client:
        await client.greet()
        client.writer.write(serialize_option(Option.EXPORT_NAME, b"disk"))
        assert await client.closed() == b""


async def test_where_tls_is_offered_both_kinds_of_clients_are_served(
    path: Path, certificates: Path
) -> None:
    context = tls.server_context(certificates)
    async with serve(disk(), unix=path, tls=context, require_tls=False) as server:
        assert server.uris == [f"nbd+unix:///disk?socket={path}"]
        async with using(path, "disk") as client, connect(uri(path, certificates)) as remote:
            await client.write(0, b"\1" * 512)
            assert await remote.read(0, 512) == b"\1" * 512


async def test_where_there_is_no_tls_it_is_refused(path: Path, certificates: Path) -> None:
    async with serve(disk(), unix=path):
        with pytest.raises(ProtocolError, match="this server has no TLS"):
            async with connect(uri(path, certificates)):
                pass


async def test_bytes_injected_behind_starttls_are_refused(
    path: Path, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = tls.server_context(certificates)
    async with serve(disk(), unix=path, tls=context), connected(path) as client:
        await client.greet()
        injected = serialize_option(Option.GO, GO_DISK)
        client.writer.write(serialize_option(Option.STARTTLS) + injected)
        assert await client.option_reply(Option.STARTTLS) == (OptionReply.ACK, b"")
        assert await client.closed() == b""
    assert "the peer sent unprotected bytes before TLS began" in caplog.text


async def test_what_was_negotiated_before_tls_is_forgotten(path: Path, certificates: Path) -> None:
    context = tls.server_context(certificates)
    contexts = struct.pack(">I4sII15s", 4, b"disk", 1, 15, b"base:allocation")
    async with (
        serve(disk(), unix=path, tls=context, require_tls=False),
        connected(path) as client,
    ):
        await client.greet()
        assert await reply_types(client, Option.STRUCTURED_REPLY) == OptionReply.ACK
        assert await reply_types(client, Option.SET_META_CONTEXT, contexts) == OptionReply.ACK
        await start_tls(client, certificates)
        kind = await reply_types(client, Option.SET_META_CONTEXT, contexts)
        assert kind == OptionReply.ERR_INVALID  # there are no structured replies yet
        await client.go("disk")
        assert await client.read(0, 512) == bytes(512)  # in a simple reply


async def test_tls_begins_once(path: Path, certificates: Path) -> None:
    context = tls.server_context(certificates)
    async with serve(disk(), unix=path, tls=context), connected(path) as client:
        await client.greet()
        assert await reply_types(client, Option.STARTTLS, b"data") == OptionReply.ERR_INVALID
        await start_tls(client, certificates)
        assert await reply_types(client, Option.STARTTLS) == OptionReply.ERR_INVALID
        await client.go("disk")


async def test_client_that_sends_anything_but_tls_is_disconnected(
    path: Path, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = tls.server_context(certificates)
    async with serve(disk(), unix=path, tls=context) as server:
        async with connected(path) as client:
            await client.greet()
            await client.ask(Option.STARTTLS)
            client.writer.write(b"\x1b]0;owned\x07\nGET / HTTP/1.1\r\n\r\n")
            await client.closed()
        await until_left(server)
    assert "the handshake failed" in caplog.text
    assert "owned" not in caplog.text
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.deadline(30)  # asyncio's own limit for it is 60 s
async def test_client_that_never_begins_tls_is_disconnected(
    path: Path, certificates: Path, timers: Timers
) -> None:
    context = tls.server_context(certificates)
    async with (
        serve(disk(), unix=path, tls=context, handshake_timeout=LATER),
        connected(path) as client,
    ):
        await client.greet()
        await client.ask(Option.STARTTLS)
        timers.go_off()
        await client.closed()


async def test_requests_in_flight_are_answered_over_tls_when_the_server_ends(
    path: Path, certificates: Path
) -> None:
    device = PuppetDisk()
    context = tls.server_context(certificates)
    async with (
        serve({"disk": device}, unix=path, tls=context) as server,
        connect(uri(path, certificates), connections=1) as remote,
    ):
        reading = asyncio.ensure_future(remote.read(0, MIB))
        call = await device.calls.get()
        server.close()
        call.succeed(b"\1" * MIB)
        assert await reading == b"\1" * MIB


async def test_first_bytes_of_tls_are_not_read_by_the_nbd_handshake(
    path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AlwaysOver(Slice):
        def is_over(self) -> bool:
            return True

        async def next(self) -> None:
            for _ in range(100):  # the client goes on meanwhile
                await asyncio.sleep(0)

    monkeypatch.setattr(handshake, "Slice", AlwaysOver)
    context = tls.server_context(certificates)
    async with serve(disk(), unix=path, tls=context), connected(path) as client:
        await client.greet()
        await start_tls(client, certificates)
        assert await reply_types(client, Option.GO, GO_DISK) == OptionReply.ACK
