"""Unexpected servers: TLS or none, certificates, another protocol, request timeout."""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from aiovblk import ProtocolError, TLSRequiredError, TLSUnavailableError, connect, serve, tls
from aiovblk.protocol import Command
from aiovblk.storage import MemoryDevice
from tests.support.certificates import make_certificates
from tests.support.timers import LATER, Timers

from ...support.scripted_server import Export, connected, fails, listening, logged


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


async def enter(uri: str, **options: float) -> None:
    async with connect(uri, **options):  # type: ignore[arg-type]
        pass


# TLS


async def test_server_that_requires_tls_is_an_error_that_suggests_nbds(
    tmp_path: Path, certificates: Path
) -> None:
    context = tls.server_context(certificates)
    async with serve(MemoryDevice(4096), unix=tmp_path / "socket", tls=context):
        with pytest.raises(TLSRequiredError, match="use nbds:// in place of nbd://"):
            await enter(f"nbd+unix:///?socket={tmp_path}/socket")
        await enter(f"nbds+unix:///?socket={tmp_path}/socket&tls-certificates={certificates}")


async def test_server_without_tls_is_an_error_that_suggests_nbd(tmp_path: Path) -> None:
    async with serve(MemoryDevice(4096), unix=tmp_path / "socket"):
        with pytest.raises(TLSUnavailableError, match="it has no TLS: nbd:// in place"):
            await enter(f"nbds+unix:///?socket={tmp_path}/socket&tls-verify-peer=0")


async def test_certificate_of_another_name_is_an_error_with_the_servers_address(
    certificates: Path,
) -> None:
    async with listening(tls=tls.server_context(certificates)) as server:
        uri = (
            f"nbds+unix:///?socket={server.path}&tls-certificates={certificates}"
            "&tls-hostname=example.com"
        )
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await enter(uri)
    assert str(caught.value).startswith(f"nbds+unix:///?socket={server.path}")
    assert "the server's certificate is refused: Hostname mismatch" in str(caught.value)
    assert "tls-hostname=NAME in the URI" in str(caught.value)
    assert caught.value.verify_code == 62


async def test_authority_that_is_not_trusted_is_an_error_with_a_fix(certificates: Path) -> None:
    async with listening(tls=tls.server_context(certificates)) as server:
        with pytest.raises(ssl.SSLCertVerificationError, match="tls-certificates=FOLDER"):
            await enter(f"nbds+unix:///?socket={server.path}")


async def test_client_certificate_that_a_server_requires_is_an_error_with_a_fix(
    tmp_path: Path, certificates: Path
) -> None:
    (tmp_path / "trusted").mkdir()
    authority = (certificates / "ca-cert.pem").read_bytes()
    (tmp_path / "trusted/ca-cert.pem").write_bytes(authority)
    context = tls.server_context(certificates, verify_peer=True)
    async with serve(MemoryDevice(4096), unix=tmp_path / "socket", tls=context):
        with pytest.raises(OSError, match="a client certificate: tls-certificates=FOLDER in the"):
            await enter(
                f"nbds+unix:///?socket={tmp_path}/socket&tls-certificates={tmp_path}/trusted"
            )


needs_psk = pytest.mark.skipif(
    sys.version_info < (3, 13) or not ssl.HAS_PSK,
    reason="pre-shared keys need Python 3.13 and an OpenSSL that has them",
)


@needs_psk
@pytest.mark.parametrize("known", ["alice", "bob"])
async def test_server_with_another_key_or_without_the_user_is_an_error_with_a_hint(
    known: str, tmp_path: Path
) -> None:
    for name, user in (("server", known), ("client", "alice")):
        (tmp_path / name).write_text(f"{user}:{name.encode().hex() * 8}\n")
        (tmp_path / name).chmod(0o600)
    context = tls.psk_server_context(tmp_path / "server")
    async with serve(MemoryDevice(4096), unix=tmp_path / "socket", tls=context):
        with pytest.raises(OSError, match="not know this user, or has another key"):
            await enter(
                f"nbds+unix://alice@/?socket={tmp_path}/socket&tls-psk-file={tmp_path}/client"
            )


@needs_psk
async def test_server_that_wants_a_pre_shared_key_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"alice:{'00' * 32}\n")
    (tmp_path / "keys").chmod(0o600)
    context = tls.psk_server_context(tmp_path / "keys")
    async with serve(MemoryDevice(4096), unix=tmp_path / "socket", tls=context):
        with pytest.raises(OSError, match=r"pre-shared key: tls-psk-file=FILE|\(tls-psk-file\)"):
            await enter(f"nbds+unix:///?socket={tmp_path}/socket")


# Other protocols


@asynccontextmanager
async def speaking(path: Path, greeting: bytes) -> AsyncIterator[str]:
    """A server that greets and then waits; its URI."""

    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.create_task(talk(reader, writer)))

    server = await asyncio.start_unix_server(accept, path)
    try:
        yield f"nbd+unix:///?socket={path}"
    finally:
        server.close()
        await asyncio.gather(*talks)


async def test_server_of_another_protocol_is_an_error_at_once(tmp_path: Path) -> None:
    async with speaking(tmp_path / "socket", b"HTTP/1.1 400\r\n") as uri:
        with pytest.raises(ProtocolError, match=r'no NBD server: it greets with "HTTP/1\.1"'):
            await enter(uri)


async def test_server_that_does_not_greet_is_an_error_that_says_so(tmp_path: Path) -> None:
    async with speaking(tmp_path / "socket", b"") as uri:
        with pytest.raises(TimeoutError, match=r"does not greet; is this an NBD server\?"):
            await enter(uri, timeout=0.1)


async def test_server_that_stops_after_its_greeting_is_another_error(tmp_path: Path) -> None:
    async with speaking(tmp_path / "socket", b"NBDMAGICIHAVEOPT\0\3") as uri:
        with pytest.raises(TimeoutError, match=r"did not answer within 2 s$"):
            await enter(uri, timeout=2)


# What a server says


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\u202e"])
async def test_message_of_an_error_cannot_write_on_a_terminal(text: str) -> None:
    async with connected(Export()) as (_, remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 512))
        peer.error(await peer.request(), errno.EIO, text)
        shown = text.encode("unicode_escape").decode() if len(text) == 1 else repr(text)[1:-1]
        await fails(reading, errno.EIO, re.escape(shown))


# Request timeout


async def test_request_timeout_aborts_the_connection() -> None:
    options = {"reconnect": None, "request_timeout": 0.1}
    async with connected(Export(), **options) as (_, remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 512))
        await peer.request()
        await fails(reading, errno.ENOTCONN, "did not answer a READ within 0.1 s")
        await peer.hung_up()


async def test_reply_that_never_ends_aborts_the_connection() -> None:
    """However many parts of it arrive."""
    options = {"reconnect": None, "request_timeout": 0.2}
    async with connected(Export(), **options) as (_, remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 1 << 19))
        request = await peer.request()

        async def drip() -> None:
            for each in range(1 << 19):
                peer.part(request, each, b"x")
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        await fails(reading, errno.ENOTCONN, "did not answer a READ within 0.2 s")
        dripping.cancel()


async def test_read_is_replayed_after_its_connection_was_aborted(timers: Timers) -> None:
    options = {"request_timeout": LATER, "connections": 1}
    async with connected(Export(), **options) as (server, remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 512))
        await peer.request()
        timers.go_off()
        await logged("did not answer a READ within")
        second = await server.peer()
        second.succeed(await second.request(), b"x" * 512)
        assert await reading == b"x" * 512


async def test_write_fails_once_its_connection_was_aborted() -> None:
    async with connected(Export(), request_timeout=0.1) as (_, remote, peer):
        writing = asyncio.ensure_future(remote.write(0, b"x" * 512))
        await peer.request()
        await fails(writing, errno.EIO, "not known whether this WRITE was stored")


async def test_write_that_comes_while_the_connection_is_given_up_is_sent_on_the_next(
    timers: Timers,
) -> None:
    options = {"request_timeout": LATER, "connections": 1}
    async with connected(Export(), **options) as (server, remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 512))
        await peer.request()
        writing = asyncio.ensure_future(remote.write(512, b"y" * 512))
        timers.go_off()  # the write is made before the connection's end is seen
        second = await server.peer()
        for request in await second.requests(2):
            second.succeed(request, b"x" * 512 if request.type == Command.READ else b"")
        assert await reading == b"x" * 512
        await writing


async def test_answers_in_time_leave_the_connection_alone(timers: Timers) -> None:
    """The timeout applies to each request, not to the connection."""
    options = {"reconnect": None, "request_timeout": LATER}
    async with connected(Export(), **options) as (_, remote, peer):
        for _ in range(20):
            reading = asyncio.ensure_future(remote.read(0, 512))
            request = await peer.request()
            timers.go_off(LATER / 2)  # since the one before, perhaps
            peer.succeed(request, b"x" * 512)
            await reading
        later = asyncio.ensure_future(remote.read(0, 512))
        peer.succeed(await peer.request(), b"y" * 512)
        assert await later == b"y" * 512


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["timeout", "request_timeout"])
def test_invalid_timeout_is_refused(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive number of seconds"):
        connect("nbd://host", **{name: seconds})  # type: ignore[arg-type]
