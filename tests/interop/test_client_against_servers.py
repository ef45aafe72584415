"""The client against nbdkit, qemu-nbd and nbd-server."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from aiovblk import ProtocolError, RemoteDevice, connect
from aiovblk.device import can
from aiovblk.protocol import ReplyMode
from tests.support.certificates import USER, make_certificates, make_keys

from .programs import program
from .servers import Server, nbd_server, serving

MIB = 1 << 20
SIZE = 64 * MIB
BLOCK = 4096


def uri_of(server: Server, export: str = "", scheme: str = "nbd+unix", more: str = "") -> str:
    return f"{scheme}:///{export}?socket={server.path}{more}"


def run(*command: str) -> None:
    subprocess.run(command, check=True)


async def exercise(remote: RemoteDevice) -> None:
    """Write, zero and trim at random, many requests at once, and compare with a copy in memory."""
    copy = bytearray(SIZE)

    async def write(place: int) -> None:
        # Parts of their own, so that the copy need not know in which order they are written.
        offset = place * 16 * BLOCK
        data = os.urandom((place % 16 + 1) * BLOCK)
        copy[offset : offset + len(data)] = data
        await remote.write(offset, memoryview(data))

    assert remote.size == SIZE
    await remote.write_zeroes(0, SIZE, may_trim=False)
    await asyncio.gather(*map(write, range(200)))
    await remote.flush()
    copy[BLOCK : 9 * BLOCK] = bytes(8 * BLOCK)
    await remote.write_zeroes(BLOCK, 8 * BLOCK, may_trim=True)
    big = os.urandom(40 * MIB)
    copy[20 * MIB : 60 * MIB] = big
    await remote.write(20 * MIB, big)
    await remote.trim(62 * MIB, MIB)
    await remote.cache(0, MIB)
    assert await remote.read(0, 62 * MIB) == memoryview(copy)[: 62 * MIB]
    places = [n * 16 * BLOCK for n in range(200)]
    reads = await asyncio.gather(*(remote.read(place, 16 * BLOCK) for place in places))
    for place, data in zip(places, reads, strict=True):
        assert data == memoryview(copy)[place : place + 16 * BLOCK]


async def check_extents(remote: RemoteDevice) -> int:
    """Look at all extents; what is told to be zero must be. How many bytes that is."""
    offset = zeroes = 0
    while offset < remote.size:
        for extent in await remote.extents(offset, remote.size - offset):
            length = min(extent.length, remote.size - offset)
            if extent.zero:
                zeroes += length
                assert not any(bytes(await remote.read(offset, length)))
            offset += length
    return zeroes


# nbdkit


@pytest.mark.parametrize(
    ("options", "mode"), [([], ReplyMode.STRUCTURED), (["--no-sr"], ReplyMode.SIMPLE)]
)
async def test_nbdkit(options: list[str], mode: ReplyMode) -> None:
    with serving("nbdkit", "-f", *options, "memory", str(SIZE)) as server:
        async with connect(uri_of(server)) as remote:
            assert remote._session.negotiated.mode is mode
            assert can(remote, "extents") == (mode is ReplyMode.STRUCTURED)
            assert remote.block_size == 512
            await exercise(remote)
            if mode is ReplyMode.STRUCTURED:
                assert 0 < await check_extents(remote) < SIZE


async def test_nbdkit_takes_several_connections() -> None:
    with serving("nbdkit", "-f", "memory", str(SIZE)) as server:
        async with connect(uri_of(server), connections=3) as remote:
            changed = remote._session._changed
            while remote.connections < 3:
                changed.clear()
                await changed.wait()
            await exercise(remote)
            assert remote.connections == 3


async def test_nbdkit_with_holes() -> None:
    with serving("nbdkit", "-f", "sparse-random", "16M", "percent=30", "seed=1") as server:
        async with connect(uri_of(server)) as remote:
            assert 0 < await check_extents(remote) < 16 * MIB


async def test_nbdkit_with_block_sizes() -> None:
    policy = ["blocksize-minimum=8192", "blocksize-preferred=16384", "blocksize-maximum=1M"]
    options = ["--filter=blocksize-policy", "memory", str(SIZE), "blocksize-error-policy=error"]
    with serving("nbdkit", "-f", *options, *policy) as server:
        async with connect(uri_of(server)) as remote:
            assert (remote.block_size, remote.info.maximum_payload) == (8192, MIB)
            data = os.urandom(3 * MIB)
            await remote.write(8192, data)
            assert await remote.read(8192, len(data)) == data


async def test_nbdkit_of_an_odd_size() -> None:
    with serving("nbdkit", "-f", "memory", "1000") as server:
        async with connect(uri_of(server)) as remote:
            assert (remote.block_size, remote.blocks) == (8, 125)
            await remote.write(992, b"the end.")
            assert bytes(await remote.read(0, 1000)) == bytes(992) + b"the end."


async def test_nbdkit_that_is_read_only() -> None:
    with serving("nbdkit", "-f", "-r", "memory", str(SIZE)) as server:
        async with connect(uri_of(server)) as remote:
            assert remote.read_only
            with pytest.raises(PermissionError):
                await remote.write(0, b"x")


@pytest.mark.parametrize("options", [[], ["--no-sr"]])
async def test_nbdkit_with_errors(options: list[str]) -> None:
    errors = ["error-pread=ENOMEM", "error-pread-rate=100%", "error-zero=ENOSPC"]
    errors += ["error-zero-rate=100%"]
    arguments = [*options, "--filter=error", "memory", str(SIZE), *errors]
    with serving("nbdkit", "-f", *arguments) as server:
        async with connect(uri_of(server)) as remote:
            for call, number in [
                (remote.read(0, BLOCK), errno.ENOMEM),
                (remote.write_zeroes(0, BLOCK, may_trim=True), errno.ENOSPC),
                (remote.trim(SIZE, BLOCK), errno.EINVAL),
            ]:
                with pytest.raises(OSError, match=os.strerror(number)):
                    await call
            await remote.write(0, b"x")


async def test_nbdkit_that_is_slow_and_calls_that_are_cancelled() -> None:
    delay = ["--filter=delay", "memory", str(SIZE), "delay-read=100ms", "delay-write=100ms"]
    with serving("nbdkit", "-f", *delay) as server:
        async with connect(uri_of(server)) as remote:
            buffer = bytearray(b"first")
            calls = [
                asyncio.ensure_future(remote.write(0, memoryview(buffer))),
                asyncio.ensure_future(remote.read(0, 5)),
            ]
            await asyncio.sleep(0)  # for both to begin
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            buffer[:] = b"other"
            await remote.flush()
            assert bytes(await remote.read(0, 5)) in (b"first", bytes(5))
        async with connect(uri_of(server)) as remote:
            assert bytes(await remote.read(0, 5)) == b"first"


async def test_nbdkit_without_such_an_export() -> None:
    with serving("nbdkit", "-f", "info", "mode=exportname") as server:
        async with connect(uri_of(server, "hello%20world")) as remote:
            assert remote.block_size == 1
            assert bytes(await remote.read(0, remote.size)) == b"hello world"
    with serving("nbdkit", "-f", "--filter=exportname", "memory", "1M", *STRICT) as server:
        with pytest.raises(ProtocolError, match="the server refused GO"):
            async with connect(uri_of(server, "other")):
                pass
        async with connect(uri_of(server, "disk")) as remote:
            assert remote.size == MIB


STRICT = ["exportname=disk", "exportname-strict=true"]


async def test_nbdkit_that_goes_down_and_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(SIZE))
    with serving("nbdkit", "-f", "file", str(file)) as server:
        async with connect(uri_of(server), reconnect=60.0) as remote:
            await remote.write(0, b"flushed")
            await remote.flush()
            await remote.write(BLOCK, b"acknowledged")
            server.kill()
            reading = asyncio.ensure_future(remote.read(0, 7))
            server.start()
            assert bytes(await reading) == b"flushed"
            with pytest.raises(OSError, match="it is not known whether 1 writes"):
                await remote.flush()
            await remote.write(BLOCK, b"once more")
            await remote.flush()
            assert bytes(await remote.read(BLOCK, 9)) == b"once more"


async def test_nbdkit_that_goes_down() -> None:
    with serving("nbdkit", "-f", "memory", str(SIZE)) as server:
        async with connect(uri_of(server)) as remote:
            await remote.write(0, b"x")
            server.kill()
            with pytest.raises(OSError, match="was lost") as caught:
                await remote.read(0, 1)
            assert caught.value.errno == errno.ENOTCONN


# TLS


async def test_nbdkit_with_tls(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    options = ["--tls=require", f"--tls-certificates={certificates}", "--tls-verify-peer"]
    with serving("nbdkit", "-f", *options, "memory", str(SIZE)) as server:
        uri = uri_of(server, scheme="nbds+unix", more=f"&tls-certificates={certificates}")
        async with connect(uri) as remote:
            await exercise(remote)
        with pytest.raises(ProtocolError, match="refused"):
            async with connect(uri_of(server)):
                pass
        with pytest.raises(ssl.SSLCertVerificationError):
            async with connect(uri_of(server, scheme="nbds+unix")):
                pass


@pytest.mark.skipif(sys.version_info < (3, 13), reason="pre-shared keys came with Python 3.13")
async def test_nbdkit_with_pre_shared_keys(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    keys.write_text("".join(keys.read_text().splitlines(keepends=True)[2:]))  # no comments there
    options = ["--tls=require", f"--tls-psk={keys}", "memory", str(SIZE)]
    with serving("nbdkit", "-f", *options) as server:
        uri = f"nbds+unix://{USER}@/?socket={server.path}&tls-psk-file={keys}"
        async with connect(uri) as remote:
            await exercise(remote)


async def test_qemu_nbd_with_tls(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    disk = tmp_path / "disk"
    disk.write_bytes(b"")
    os.truncate(disk, SIZE)
    credentials = f"tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={certificates}"
    options = ["--object", credentials, "--tls-creds", "tls", "-f", "raw"]
    with serving("qemu-nbd", "-t", *options, str(disk)) as server:
        uri = uri_of(server, scheme="nbds+unix", more=f"&tls-certificates={certificates}")
        async with connect(uri) as remote:
            await exercise(remote)


# qemu-nbd


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_qemu_nbd(tmp_path: Path, form: str) -> None:
    disk = tmp_path / "disk"
    run(program("qemu-img"), "create", "-q", "-f", form, str(disk), str(SIZE))
    options = ["-t", "-e", "8", "-f", form, "-x", "disk", "-D", "of a test"]
    with serving("qemu-nbd", *options, str(disk)) as server:
        async with connect(uri_of(server, "disk")) as remote:
            assert remote.description == "of a test"
            # qemu-img allocates the first block of a raw disk.
            assert await check_extents(remote) >= SIZE - BLOCK
            await exercise(remote)
            assert 0 < await check_extents(remote) < SIZE


async def test_qemu_nbd_that_takes_one_client_at_a_time(tmp_path: Path) -> None:
    """It tells that it takes several, then leaves the second without an answer."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"")
    os.truncate(disk, SIZE)
    with serving("qemu-nbd", "-t", "-r", "-f", "raw", str(disk)) as server:
        for _ in range(2):
            async with connect(uri_of(server)) as remote:
                assert bytes(await remote.read(0, 512)) == bytes(512)
                assert remote.connections == 1


# nbd-server


async def test_nbd_server(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"")
    os.truncate(disk, SIZE)
    async with nbd_server(disk) as uri, connect(uri, connections=1) as remote:
        await exercise(remote)
