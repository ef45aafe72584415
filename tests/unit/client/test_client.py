"""Client: connecting, several connections, least busy connection, closing."""

from __future__ import annotations

import asyncio
import errno
import struct
from typing import Any

import anyio
import pytest

from aiovblk import ProtocolError, connect
from aiovblk.client import session
from aiovblk.protocol import ReplyMode, TransmissionFlag

from ...support.polling import until
from ...support.scripted_server import ALL_FLAGS, Server, listening, remote_of

# Connecting


async def test_connect_to_nothing_fails() -> None:
    async with listening() as server:
        uri = server.uri
    with pytest.raises(FileNotFoundError):
        async with connect(uri):
            pass


@pytest.mark.parametrize(
    ("answer", "error", "why"),
    [
        (b"", ConnectionResetError, "closed the connection during the handshake"),
        (b"NBDMAGIC", ConnectionResetError, "closed the connection during the handshake"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolError, "this is no NBD server"),
    ],
)
async def test_connect_to_something_else_fails(
    answer: bytes, error: type[Exception], why: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    host, port = server.sockets[0].getsockname()
    with pytest.raises(error, match=why):
        async with connect(f"nbd://{host}:{port}"):
            pass
    server.close()


async def test_connect_times_out() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1")
    uri = f"nbd://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    with pytest.raises(TimeoutError, match=f"{uri} did not answer within 0.05 s"):
        async with connect(uri, timeout=0.05):
            pass
    await ended.wait()
    server.close()


async def test_cancelled_connect_closes_what_it_opened() -> None:
    greeted, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"NBDMAGICIHAVEOPT\0\3")
        await reader.readexactly(4)
        greeted.set()
        await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1")
    uri = f"nbd://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    entering = asyncio.ensure_future(connect(uri).__aenter__())
    await greeted.wait()
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    await ended.wait()
    server.close()


@pytest.mark.parametrize(
    ("uri", "options", "why"),
    [
        ("http://h", {}, "cannot be used as an NBD URI"),
        ("nbd://h", {"connections": 0}, "connections must be from 1 to 1024"),
        ("nbd://h", {"timeout": 0}, "timeout must be a positive number"),
        ("nbd://h", {"reconnect": -1}, "reconnect must be a positive number"),
        ("nbd://h", {"tls": object()}, "begins with nbds"),
    ],
)
def test_wrong_arguments_are_refused_at_once(uri: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        connect(uri, **options)


async def test_whole_connection_in_literal_bytes() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"NBDMAGICIHAVEOPT\x00\x03")
        assert await reader.readexactly(4) == b"\x00\x00\x00\x03"
        for option in (11, 8):  # EXTENDED_HEADERS, STRUCTURED_REPLY
            expected = b"IHAVEOPT" + struct.pack(">II", option, 0)
            assert await reader.readexactly(16) == expected
            reply = f"0003e889045565a9 {option:08x} 80000001 00000000"
            writer.write(bytes.fromhex(reply))
        go = b"IHAVEOPT" + bytes.fromhex("00000007 0000000e 00000004") + b"disk"
        assert await reader.readexactly(30) == go + bytes.fromhex("0002 0003 0002")
        info = bytes.fromhex(
            "0003e889045565a9 00000007 00000003 0000000c 0000 0000000000000400 0001"
            "0003e889045565a9 00000007 00000001 00000000"
        )
        writer.write(info)
        read = bytes.fromhex("25609513 0000 0000 0000000000000001 0000000000000200 00000004")
        assert await reader.readexactly(28) == read
        writer.write(bytes.fromhex("67446698 00000000 0000000000000001") + b"data")
        bye = bytes.fromhex("25609513 0000 0002 0000000000000000 0000000000000000 00000000")
        assert await reader.read() == bye
        writer.close()
        done.set_result(None)

    done = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(serve, "localhost", 0, family=2)
    uri = f"nbd://127.0.0.1:{server.sockets[0].getsockname()[1]}/disk"
    async with connect(uri) as remote:
        assert bytes(await remote.read(512, 4)) == b"data"
    await done
    server.close()


# Several connections


async def test_requests_take_the_connection_with_the_fewest_in_flight() -> None:
    flags = ALL_FLAGS | TransmissionFlag.CAN_MULTI_CONN
    async with listening(flags=flags) as server:
        async with connect(server.uri, connections=3) as remote:
            peers = [await server.peer() for _ in range(3)]
            await _until_connected(remote, 3)
            reads = [asyncio.ensure_future(remote.read(n, 1)) for n in range(9)]
            for peer in peers:
                for request in await peer.requests(3):
                    peer.succeed(request, bytes([request.offset]))
            assert [bytes(await each) for each in reads] == [bytes([n]) for n in range(9)]
        for peer in peers:
            await peer.disconnected()


async def test_one_connection_where_the_server_permits_no_more() -> None:
    async with remote_of(options={"connections": 8}) as (remote, _):
        assert remote.connections == 1


async def test_further_connection_that_gets_no_answer_does_no_harm() -> None:
    flags = ALL_FLAGS | TransmissionFlag.CAN_MULTI_CONN
    async with listening(flags=flags) as server:
        server.max_answered = 1
        async with connect(server.uri, connections=2) as remote:
            peer = await server.peer()
            await server.ignored()
            reading = asyncio.ensure_future(remote.read(0, 1))
            peer.succeed(await peer.request(), b"x")
            assert bytes(await reading) == b"x"
            assert remote.connections == 1
        await peer.disconnected()


async def test_further_connection_to_something_else_is_not_used() -> None:
    flags = ALL_FLAGS | TransmissionFlag.CAN_MULTI_CONN
    async with listening(flags=flags, size=4096) as server:
        async with connect(server.uri, connections=2) as remote:
            server.export.size = 8192  # before its handshake gets that far
            peer, other = await server.peer(), await server.peer()
            await other.hung_up()
            assert remote.connections == 1
        await peer.disconnected()


async def _until_connected(remote: Any, count: int) -> None:
    await until(lambda: remote.connections >= count)  # the handshakes are over


# Closing


async def test_closing_waits_for_requests_in_flight() -> None:
    async with listening() as server:
        leaving = asyncio.Event()

        async def use() -> asyncio.Future[Any]:
            async with connect(server.uri) as remote:
                reading = asyncio.ensure_future(remote.read(0, 1))
                await leaving.wait()
            with pytest.raises(OSError, match="is closed") as caught:
                await remote.read(0, 1)
            assert caught.value.errno == errno.ENOTCONN
            return reading

        using = asyncio.ensure_future(use())
        peer = await server.peer()
        request = await peer.request()
        leaving.set()
        await asyncio.sleep(0)
        assert not using.done()
        peer.succeed(request, b"x")
        await peer.disconnected()
        assert bytes(await (await using)) == b"x"


async def test_closing_times_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "CLOSE_TIMEOUT", 0.05)
    async with listening() as server:
        async with connect(server.uri) as remote:
            reading = asyncio.ensure_future(remote.read(0, 1))
            peer = await server.peer()
            await peer.request()
        await peer.hung_up()
        with pytest.raises(OSError, match="is closed"):
            await reading
    assert "did not answer all requests" in caplog.text


async def test_cancelled_close_closes_at_once() -> None:
    async with listening() as server:
        connected = asyncio.Event()

        async def use() -> None:
            async with connect(server.uri) as remote:
                reading = asyncio.ensure_future(remote.read(0, 1))
                reading.add_done_callback(lambda done: done.exception())
                await peer_is_there.wait()
                connected.set()

        peer_is_there = asyncio.Event()
        using = asyncio.ensure_future(use())
        peer = await server.peer()
        await peer.request()
        peer_is_there.set()
        await connected.wait()
        await asyncio.sleep(0)
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
        await peer.hung_up()


async def test_cancelled_scope_closes_gracefully() -> None:
    async with listening() as server:
        with anyio.CancelScope() as scope:
            async with connect(server.uri):
                peer = await server.peer()
                scope.cancel()
                await anyio.sleep_forever()
        await peer.disconnected()


async def test_exception_of_the_body_is_raised_unchanged() -> None:
    async with listening() as server:
        with pytest.raises(KeyError, match="own"):
            async with connect(server.uri):
                peer = await server.peer()
                raise KeyError("own")
        await peer.disconnected()


async def test_unmount_closes_and_may_be_called_again() -> None:
    async with remote_of() as (remote, _):
        await asyncio.gather(remote.unmount(), remote.unmount())
        with pytest.raises(OSError, match="is closed"):
            await remote.flush()
        await remote.unmount()


async def test_server_with_only_the_baseline_of_the_protocol() -> None:
    """Without structured replies, flush and the like."""
    server: Server
    async with listening(mode=ReplyMode.SIMPLE, flags=0) as server:
        async with connect(server.uri) as remote:
            peer = await server.peer()
            writing = asyncio.ensure_future(remote.write(0, bytearray(b"data")))
            request = await peer.request()
            peer.succeed(request)
            await writing
            assert peer.data[request.cookie] == b"data"
        await peer.disconnected()


@pytest.mark.parametrize(("offset", "length"), [(-512, 512), (1 << 64, 512)])
async def test_request_that_the_protocol_has_no_room_for_is_refused_and_forgotten(
    offset: int, length: int
) -> None:
    async with listening() as server:
        async with connect(server.uri) as remote:
            peer = await server.peer()
            with pytest.raises(ValueError, match=f"READ at {offset} of {length} bytes"):
                await remote.read(offset, length)
            reading = asyncio.ensure_future(remote.read(0, 512))
            peer.succeed(await peer.request(), bytes(512))
            assert await reading == bytes(512)
        await peer.disconnected()  # nothing is waited for
