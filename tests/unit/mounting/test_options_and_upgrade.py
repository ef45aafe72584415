"""Options of a mount that cannot be, and the command that replaces itself."""

from __future__ import annotations

import asyncio
import signal
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

import aiovblk
from aiovblk import Mount, interpreter
from aiovblk.cli.reparent import _COMMAND, Upgrade
from aiovblk.cli.systemd import Notifier
from aiovblk.storage import MemoryDevice


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"survive": 60}, "survive takes an identity"),
        ({"replace": True}, "replace takes an identity"),
        ({"identity": "v", "survive": 0}, "survive must be a positive number of seconds"),
        ({"identity": "v", "attach": "ioctl"}, "use netlink"),
        ({"identity": ""}, "1 to 255 printable characters"),
        ({"identity": "v" * 256}, "1 to 255 printable characters"),
        ({"identity": "a\nb"}, "1 to 255 printable characters"),
        ({"identity": " v"}, "no space around them"),
        ({"attach": "usb"}, "attach must be one of auto, ioctl, netlink"),
        ({"timeout": -1}, "timeout must be a positive number of seconds"),
        ({"connections": 0}, "connections must be from 1 to 1024"),
    ],
)
async def test_options_that_cannot_be_are_refused(options: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        async with aiovblk.mounted(MemoryDevice(4096), **options):
            pass


class Systemd(Notifier):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str | int] = []

    def ready(self, status: str) -> None:
        self.sent.append(status)

    def replaced(self, process: int) -> None:
        self.sent.append(process)


def upgrade(identity: str | None, words: list[str]) -> tuple[Upgrade, Systemd]:
    systemd = Systemd()
    mount = cast(Mount, SimpleNamespace(identity=identity, path="/dev/nbd3"))
    return Upgrade(words, mount, systemd), systemd


async def signalled() -> None:
    """Send this process SIGUSR2, and wait until it is handled: before another that comes later."""
    loop, handled = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, handled.set)
    signal.raise_signal(signal.SIGUSR2)
    signal.raise_signal(signal.SIGUSR1)
    await handled.wait()
    loop.remove_signal_handler(signal.SIGUSR1)


async def started(ending: Upgrade) -> None:
    assert ending._starting is not None
    await ending._starting


async def test_without_an_identity_there_is_no_successor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ending, systemd = upgrade(None, ["mount", "memory:1M"])
    await signalled()
    ending.end()
    assert "there is no --identity" in caplog.text
    assert systemd.sent == ["serving /dev/nbd3"]


@pytest.mark.parametrize("last", [[], ["--replace"]])
async def test_a_successor_has_the_same_words(
    monkeypatch: pytest.MonkeyPatch, last: list[str]
) -> None:
    spawned: list[list[str]] = []
    running = [True, False]

    def spawn(command: list[str], environment: dict[str, str]) -> int:
        assert command[0] == sys.executable
        spawned.append(command[1:])
        return 77

    monkeypatch.setattr("aiovblk.cli.reparent.spawn_reparented", spawn)
    monkeypatch.setattr("aiovblk.cli.reparent.is_running", lambda process: running.pop(0))
    words = ["mount", "--identity=v", *last, "memory:1M"]
    ending, systemd = upgrade("v", words)
    await signalled()
    await started(ending)
    await signalled()  # while it is at it
    assert len(spawned) == 1
    await signalled()  # it has failed
    await started(ending)
    assert spawned[1] == spawned[0]
    program = interpreter.command(_COMMAND)[1:]
    assert spawned[0] == [*program, *words, *([] if last else ["--replace"])]
    ending.end()
    assert systemd.sent == ["serving /dev/nbd3", 77]
