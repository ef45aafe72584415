"""``aiovblk serve`` and ``aiovblk copy`` as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import aiovblk
from aiovblk.cli import main
from aiovblk.cli.errors import SpecError
from aiovblk.cli.serve import parse_exports

from ...support.command_process import end, line, running

GREETING = b"NBDMAGICIHAVEOPT\x00\x03"

HANGING_MODULE = """
import asyncio, aiovblk

class Disk(aiovblk.BlockDevice):
    blocks = 1

    async def read(self, offset, length):
        print("reading", flush=True)
        await asyncio.sleep(3600)

    async def unmount(self):
        print("unmounted", flush=True)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deadline(120),
    pytest.mark.one_loop,  # they choose their own
]


# Serving


@pytest.mark.parametrize(
    ("specs", "exports"),
    [
        (["memory:1M"], {"": "memory:1M"}),
        (["a=memory:1M", "b=file:x=y"], {"a": "memory:1M", "b": "file:x=y"}),
        (["nbd+unix:///?socket=/s"], {"": "nbd+unix:///?socket=/s"}),
        (["far=nbd+unix:///?socket=/s"], {"far": "nbd+unix:///?socket=/s"}),
        (["=memory:1M"], {"": "memory:1M"}),
    ],
)
def test_name_is_what_comes_before_the_first_equals_sign(
    specs: list[str], exports: dict[str, str]
) -> None:
    assert parse_exports(specs) == exports


@pytest.mark.parametrize("specs", [["memory:1M", "memory:2M"], ["a=memory:1M", "a=memory:2M"]])
def test_exports_without_names_of_their_own_are_refused(specs: list[str]) -> None:
    with pytest.raises(SpecError, match="write NAME=SPEC for each"):
        parse_exports(specs)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_serves_until_sigterm(tmp_path: Path, loop: str) -> None:
    path = tmp_path / "s"
    async with running(
        *("serve", "a=memory:1M", "b=memory:2M", "--socket", path, "--loop", loop)
    ) as process:
        uri = f"nbd+unix:///a?socket={path}"
        assert await line(process.stdout) == f"serving {uri}"
        assert await line(process.stdout) == f"serving nbd+unix:///b?socket={path}"
        async with aiovblk.connect(uri) as remote:
            await remote.write(0, b"x" * 4096)
            assert bytes(await remote.read(0, 4096)) == b"x" * 4096
            process.send_signal(signal.SIGTERM)
            assert await end(process) == (0, "", "")
    assert not path.exists()


async def test_second_signal_gives_up_what_hangs(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING_MODULE)
    async with running(
        *("-v", "serve", tmp_path / "hanging.py:Disk", "--socket", tmp_path / "s")
    ) as process:
        uri = (await line(process.stdout)).removeprefix("serving ")
        async with aiovblk.connect(uri) as remote:
            reading = asyncio.create_task(remote.read(0, 4096))
            assert await line(process.stdout) == "reading"
            process.send_signal(signal.SIGINT)
            while "shutting down, draining" not in await line(process.stderr):
                pass
            process.send_signal(signal.SIGINT)
            status, out, errors = await end(process)
            assert (status, out) == (0, "unmounted\n")
            assert "requests in flight took too long" in errors
            with pytest.raises(OSError, match="the connection"):
                await reading


@pytest.mark.parametrize("workers", [[], ["--workers", "1"]])
async def test_slow_requests_are_logged(tmp_path: Path, workers: list[str]) -> None:
    (tmp_path / "hanging.py").write_text(f"{HANGING_MODULE}\n    multi_conn = True\n")
    options = ["--slow-request", "0.01", "--drain-timeout", "0.1", "--port", "0", *workers]
    command = ["serve", f"disk={tmp_path}/hanging.py:Disk", "--host", "127.0.0.1", *options]
    async with running(*command) as process:
        uri = ""
        while not uri.startswith("serving "):  # with workers, one device is made and unmounted
            uri = await line(process.stdout)
        async with aiovblk.connect(uri.removeprefix("serving ")) as remote:
            reading = asyncio.create_task(remote.read(0, 4096))
            warning = await line(process.stderr)
            reading.cancel()
            process.send_signal(signal.SIGTERM)
            assert (await end(process))[0] == 0
    expected = "aiovblk: slow: read of 4096 bytes at 0 of export 'disk' by 127.0.0.1:"
    assert warning.startswith(expected)


@pytest.mark.parametrize("command", ["serve", "mount"])
async def test_signal_ends_a_command_that_does_not_serve_yet(tmp_path: Path, command: str) -> None:
    (tmp_path / "slow.py").write_text(
        "import asyncio\nasync def make():\n    print('making', flush=True)\n"
        "    await asyncio.sleep(3600)\n"
    )
    async with running(command, tmp_path / "slow.py:make") as process:
        assert await line(process.stdout) == "making"
        process.send_signal(signal.SIGTERM)
        assert await end(process) == (0, "", "")


async def test_client_that_does_not_read_its_pipe_keeps_no_command_from_ending() -> None:
    into, out = os.pipe()  # it is not read
    async with running(
        *("-v", "serve", "memory:64M", "--stdio", "--drain-timeout", "0.1"),
        stdin=subprocess.PIPE,
        stdout=out,
    ) as process:
        os.close(out)
        assert process.stdin is not None
        go = bytes.fromhex("00000003 49484156454f5054 00000007 00000006 00000000 0000")
        read = bytes.fromhex("25609513 0000 0000 0000000000000001 0000000000000000 02000000")
        process.stdin.write(go + read)
        while "uses export" not in await line(process.stderr):
            pass
        process.send_signal(signal.SIGTERM)
        assert (await end(process))[0] == 0
    os.close(into)


async def test_stdio_serves_the_socket_that_it_is_given() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with running("serve", "memory:1M", "--stdio", stdin=theirs, stdout=theirs) as process:
            theirs.close()
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            assert await asyncio.wait_for(reader.readexactly(18), 60) == GREETING
            writer.close()
            assert (await end(process))[0] == 0


async def test_stdio_serves_pipes() -> None:
    async with running("serve", "memory:1M", "--stdio", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readexactly(18), 60) == GREETING
        # Client flags, then ABORT, which is acknowledged.
        process.stdin.write(bytes.fromhex("00000003 49484156454f5054 00000002 00000000"))
        acknowledged = bytes.fromhex("0003e889045565a9 00000002 00000001 00000000")
        assert await asyncio.wait_for(process.stdout.readexactly(20), 60) == acknowledged
        assert await end(process) == (0, "", "")


async def test_sockets_of_systemd_are_served(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        inherited = listening.fileno()

        # LISTEN_PID is known only in the process itself.
        start = "import os, sys; os.dup2(int(sys.argv[1]), 3);"
        start += "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
        start += "os.execv(sys.executable, [sys.executable, '-m', 'aiovblk', *sys.argv[2:]])"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", start, str(inherited), "serve", "memory:1M"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(inherited, 3),
        )
        try:
            uri = f"nbd+unix:///?socket={tmp_path}/s"
            assert await line(process.stderr) == f"serving {uri}"
            async with aiovblk.connect(uri) as remote:
                assert remote.size == 1 << 20
            process.send_signal(signal.SIGTERM)
            assert await end(process) == (0, "", "")
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
    assert (tmp_path / "s").exists()  # it is not ours to take away


@pytest.mark.parametrize("number", ["many", "-1", "", "1e9", "70000"])
def test_number_of_passed_sockets_that_cannot_be_is_refused(
    number: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", number)
    assert main(["serve", "memory:1M"]) == 2
    error = capsys.readouterr().err
    assert error == f"aiovblk: LISTEN_FDS must be a whole number from 0 to 65536, not {number!r}\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["memory:1M", "--tls-certificates", "/nowhere"], "/nowhere"),
        (["memory:1M", "--socket", "/proc/nothing"], "cannot listen there"),
        (["memory:1M", "--host", "256.1.1.1"], "256.1.1.1"),
    ],
)
def test_what_cannot_be_served_is_refused(
    arguments: Sequence[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 1
    errors = capsys.readouterr().err
    assert reason in errors
    assert errors.count("\n") == 1


# Copying


def sparse_file(path: Path) -> Path:
    """Data, hole, data, hole; with an end that is no multiple of 4096."""
    with path.open("wb") as file:
        for offset in (0, 3 << 20):
            file.seek(offset)
            file.write(os.urandom(300 * 1024))
        file.truncate((6 << 20) + 512)
    return path


def test_copy_keeps_holes(tmp_path: Path) -> None:
    source = sparse_file(tmp_path / "source")
    assert main(["copy", f"file:{source}", f"file:{tmp_path}/target"]) == 0
    target = tmp_path / "target"
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks


def test_copy_overwrites_what_was_there(tmp_path: Path) -> None:
    source, target = sparse_file(tmp_path / "source"), tmp_path / "target"
    target.write_bytes(b"x" * (8 << 20))
    assert main(["copy", f"file:{source}", f"file:{target}"]) == 0
    size = source.stat().st_size
    assert target.read_bytes() == source.read_bytes() + b"x" * ((8 << 20) - size)


async def test_copy_to_and_from_a_server(tmp_path: Path) -> None:
    source = sparse_file(tmp_path / "source")
    async with running(
        *("serve", f"memory:{source.stat().st_size}", "--socket", tmp_path / "s")
    ) as process:
        uri = (await line(process.stdout)).removeprefix("serving ")
        for way in ((f"file:{source}", uri), (uri, f"file:{tmp_path}/target")):
            async with running("copy", *way) as copying:
                assert await end(copying) == (0, "", "")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("memory:2M", "memory:1M", "do not fit into"),
        ("file:{0}/missing", "memory:1M", "No such file"),
        ("nbd+unix:///?socket={0}/missing", "memory:1M", "missing"),
    ],
)
def test_what_cannot_be_copied_is_refused(
    source: str, target: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["copy", source.format(tmp_path), *target.split()]) == 1
    errors = capsys.readouterr().err
    assert reason in errors
    assert errors.count("\n") == 1


# Workers


async def test_workers_serve_one_file_together(tmp_path: Path) -> None:
    path, image = tmp_path / "socket", tmp_path / "image"
    image.write_bytes(bytes(1_000_000))
    async with running("serve", f"file:{image}", "--workers", "2", "--socket", path) as process:
        uri = (await line(process.stdout)).removeprefix("serving ")
        async with aiovblk.connect(uri, connections=2) as remote:
            assert remote.multi_conn
            await remote.write(100 * 64, b"x" * 64)
            assert await remote.read(100 * 64, 64) == b"x" * 64
        process.send_signal(signal.SIGTERM)
        assert await end(process) == (0, "", "")
    assert image.read_bytes()[6400:6464] == b"x" * 64


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("memory:1M", "memory:1M cannot have workers"),
        ("file:missing", "missing"),
        (
            "examples/deadbeef.py:Deadbeef",
            "if they are, declare multi_conn = True",
        ),
    ],
)
async def test_what_is_not_one_disk_in_each_worker_is_refused(spec: str, reason: str) -> None:
    async with running("serve", spec, "--workers", "2", "--port", "0") as process:
        status, out, errors = await end(process)
    assert (status, out) == (1, "")
    assert reason in errors
    assert errors.count("\n") == 1


async def test_what_another_server_serves_can_have_workers(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with aiovblk.serve(
        aiovblk.storage.MemoryDevice(1 << 20), port=0, host="127.0.0.1"
    ) as far:
        command = ("serve", far.uris[0], "--workers", "2", "--socket", path)
        async with running(*command) as process:
            uri = (await line(process.stdout)).removeprefix("serving ")
            async with aiovblk.connect(uri) as remote:
                await remote.write(0, b"y" * 4096)
                assert await remote.read(0, 4096) == b"y" * 4096
            process.send_signal(signal.SIGTERM)
            assert (await end(process))[0] == 0
        assert not far.connections
