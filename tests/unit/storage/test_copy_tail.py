"""Exports that end within their server's smallest block: copy and mount."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from aiovblk.cli import main
from aiovblk.storage import MemoryDevice, copy

from ...support.scripted_server import Export, listening, remote_of

SIZE = 10_001
ODD = Export(SIZE, block_sizes=(4096, 4096, 1 << 20))


async def test_copy_of_an_end_that_cannot_be_read_is_refused() -> None:
    async with remote_of(ODD) as (remote, _):
        assert (remote.size, remote.left_out) == (8192, 1809)
        target = MemoryDevice(16384)
        with pytest.raises(ValueError, match="the last 1809 of the source's 10001 bytes"):
            await copy(remote, target)
        assert await target.read(0, 16384) == bytes(16384)


async def test_command_creates_no_target_for_an_end_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with listening(ODD) as server:
        words = ["copy", server.uri, f"file:{tmp_path}/target"]
        assert await asyncio.to_thread(main, words) == 1
    assert not (tmp_path / "target").exists()
    assert "the last 1809 of the source's 10001 bytes cannot be read" in capsys.readouterr().err


async def test_mount_logs_an_end_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    async with remote_of(ODD) as (remote, _):
        uri = remote.uri
    (warning,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert warning.getMessage() == (
        f"{uri}: its size, 10001 bytes, is not a multiple of the server's minimum block size"
        " (4096): the last 1809 bytes can be neither read nor written, and are left out"
    )


@pytest.mark.parametrize(
    ("size", "blocks"), [(SIZE, (1, 4096, 1 << 20)), (10_240, (512, 4096, 1 << 20)), (SIZE, None)]
)
async def test_nothing_is_left_out_where_requests_can_be_small_enough(
    size: int, blocks: tuple[int, int, int] | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with remote_of(size=size, block_sizes=blocks) as (remote, _):
        assert (remote.size, remote.left_out) == (size, 0)
    assert caplog.messages == []
