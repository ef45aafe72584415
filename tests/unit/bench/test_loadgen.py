"""The load generator, compiled and run: it counts what it should, and believes no wrong reply."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiovblk import BlockDevice, serve
from aiovblk.storage import MemoryDevice
from bench.native import LOADGEN, PACKAGE, build

SIZE = 1 << 20
Run = Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]


class Failing(MemoryDevice):
    async def read(self, offset: int, length: int) -> bytes:
        raise OSError(errno.ENOSPC, "full")


class Scripted:
    """A server that says what it is told, once it has seen the first request."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"NBDMAGICIHAVEOPT\0\3")
        await reader.readexactly(4 + 16 + 6)
        head = (0x3E889045565A9).to_bytes(8, "big") + (7).to_bytes(4, "big")
        info = bytes(2) + SIZE.to_bytes(8, "big") + b"\0\1"
        writer.write(head + (3).to_bytes(4, "big") + len(info).to_bytes(4, "big") + info)
        writer.write(head + (1).to_bytes(4, "big") + bytes(4))
        await reader.readexactly(28)
        writer.write(self._reply)
        await reader.read()
        writer.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    if shutil.which("cc") is None:
        pytest.skip(f"no C compiler: install {PACKAGE}")
    build(LOADGEN)

    async def run_it(*words: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            LOADGEN,
            *words,
            str(tmp_path / "s"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    return run_it


@asynccontextmanager
async def listening(tmp_path: Path, device: BlockDevice) -> AsyncIterator[None]:
    async with serve(device, unix=str(tmp_path / "s")):
        yield


@asynccontextmanager
async def scripted(tmp_path: Path, reply: bytes) -> AsyncIterator[None]:
    async with await asyncio.start_unix_server(Scripted(reply), tmp_path / "s"):
        yield


@pytest.mark.parametrize("structured", [[], ["--structured"]])
async def test_what_was_written_is_read_and_counted(
    run: Run, tmp_path: Path, structured: list[str]
) -> None:
    pid = ["--pid", str(os.getpid())]
    async with listening(tmp_path, MemoryDevice(SIZE)):
        status, _, said = await run("--op", "write", "--sequential", "--requests", "256")
        assert (status, said) == (0, "")
        words = ["--verify", "--depth", "8", "--requests", "400", "--warm-up", "50", *structured]
        server_cpu = 0.0
        for more in ([], ["--connections", "2"], ["--op", "mixed"], ["--block-size", "65536"]):
            status, out, said = await run(*words, *more, *pid)
            assert (status, said) == (0, "")
            told = json.loads(out)
            assert 400 <= told["requests"] < 450
            server_cpu += told["server_cpu"]
            assert told["client_cpu"] > 0
            assert 0 < told["p50"] <= told["p99"] <= told["seconds"] * 1e6
        assert server_cpu > 0  # of one run alone the clock of another process may show nothing


async def test_holes_of_structured_reads_count_as_data(run: Run, tmp_path: Path) -> None:
    async with listening(tmp_path, MemoryDevice(SIZE)):
        words = ("--structured", "--block-size", "65536", "--requests", "20")
        status, out, said = await run(*words)
        assert (status, said, json.loads(out)["requests"]) == (0, "", 20)


async def test_data_that_was_never_written_is_found_out(run: Run, tmp_path: Path) -> None:
    async with listening(tmp_path, MemoryDevice(SIZE)):
        status, _, said = await run("--verify", "--sequential")
    assert (status, said) == (1, "loadgen: wrong data at offset 0\n")


@pytest.mark.parametrize("structured", [[], ["--structured"]])
async def test_request_that_fails_ends_it(run: Run, tmp_path: Path, structured: list[str]) -> None:
    async with listening(tmp_path, Failing(SIZE)):
        status, _, said = await run("--sequential", *structured)
    assert (status, said) == (1, f"loadgen: read at offset 0 failed: error {errno.ENOSPC}\n")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (bytes(16), "no reply begins with 0"),
        (
            b"\x67\x44\x66\x98" + bytes(4) + (5).to_bytes(8, "big"),
            "a reply to no request: cookie 5",
        ),
        (b"\x66\x8e\x33\xef" + bytes(16), "no reply begins with 0x668e33ef"),
    ],
)
async def test_reply_that_cannot_be_ends_it(
    run: Run, tmp_path: Path, reply: bytes, said: str
) -> None:
    async with scripted(tmp_path, reply):
        assert await run() == (1, "", f"loadgen: {said}\n")


async def test_server_that_is_not_there_or_too_small_is_told(run: Run, tmp_path: Path) -> None:
    status, _, said = await run()
    assert status == 1
    assert said.endswith("No such file or directory\n")
    async with listening(tmp_path, MemoryDevice(4096)):
        _, _, said = await run("--block-size", "65536")
    assert said == "loadgen: the export has 4096 bytes only\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--depth", "0"], "0 is no number from 1 to 4096"),
        (["--op", "trim"], "--op is read, write or mixed, not trim"),
    ],
)
async def test_wrong_options_are_told(run: Run, words: list[str], said: str) -> None:
    assert await run(*words) == (1, "", f"loadgen: {said}\n")


async def test_unknown_option_shows_the_usage(run: Run) -> None:
    status, _, said = await run("--fast")
    assert status == 2
    assert "usage: loadgen" in said
