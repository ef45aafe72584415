"""Commands to the process that serves a device: deadlines, and requests that are none."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from aiovblk.cli import control
from aiovblk.cli.control import control_path, request_command, taking_commands
from aiovblk.cli.errors import SpecError
from aiovblk.server.listeners import listen_unix

from ...support.fake_kernel import FakeKernel


@pytest.fixture(autouse=True)
def _folder(kernel: FakeKernel) -> None:
    control_path(0).parent.mkdir(exist_ok=True)


async def test_client_that_sends_nothing_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_TIMEOUT", 0.02)
    async with taking_commands(0, {}):
        reader, writer = await asyncio.open_unix_connection(control_path(0))
        assert await reader.read() == b""
        writer.close()


async def test_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REPLY_TIMEOUT", 0.02)
    with (
        listen_unix(str(control_path(0))),
        pytest.raises(SpecError, match="/dev/nbd0: its server does not answer"),
    ):
        await request_command(0, "limit", text=None)


async def test_command_may_have_longer_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REPLY_TIMEOUT", 0.0)

    async def resize() -> str:
        return "done"

    async with taking_commands(0, {"resize": resize}):
        assert await request_command(0, "resize", timeout=60) == "done"


async def test_any_exception_of_a_command_is_answered() -> None:
    async def broken() -> None:
        raise OverflowError("too much")

    async with taking_commands(0, {"broken": broken}):
        with pytest.raises(SpecError, match=r"/dev/nbd0: OverflowError\('too much'\)"):
            await request_command(0, "broken")


async def test_request_that_is_too_deep_is_none() -> None:
    async with taking_commands(0, {}):
        reader, writer = await asyncio.open_unix_connection(control_path(0))
        writer.write(b"[" * (control.MAX_LINE - 100) + b"\n")
        assert "does not know this command" in json.loads(await reader.readline())["error"]
        writer.close()


async def test_command_in_progress_ends_with_the_device() -> None:
    running = asyncio.Event()
    ended: list[str] = []

    async def resize() -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("resize")

    async with taking_commands(0, {"resize": resize}):
        asking = asyncio.create_task(request_command(0, "resize"))
        await running.wait()
    assert ended == ["resize"]
    with pytest.raises(SpecError, match="its server ended"):
        await asking


def test_socket_has_its_mode_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("changed afterwards")

    monkeypatch.setattr(os, "chmod", refuse)
    umask = os.umask(0)
    try:
        with listen_unix(str(tmp_path / "s"), mode=0o600):
            assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(umask)
