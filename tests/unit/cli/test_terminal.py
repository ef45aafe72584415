"""Control characters in quoted input are escaped before they reach the terminal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from aiovblk.cli import main
from aiovblk.cli.doctor.findings import ok
from aiovblk.cli.list_devices import AttachedDevice, as_table
from aiovblk.cli.logs import QuotingFormatter
from aiovblk.kernel import users
from aiovblk.storage import HTTPDevice
from aiovblk.storage.objects.codec import damaged_error
from aiovblk.storage.objects.lease import Holder

from ...support.stream_server import serving
from ...support.web_server import CONTENT, Web

EVIL = "\x1b]0;owned\x07\nforged"
SHOWN = r"\x1b]0;owned\x07\nforged"


def test_error_of_a_command_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(f"def device():\n    raise OSError(5, {EVIL!r})\n")
    assert main(["copy", "evil.py:device", "memory:4K"]) == 1
    assert capsys.readouterr().err == f"aiovblk: {SHOWN}\n"


def record(name: str, **others: Any) -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "", 0, "%s", (EVIL,), None, **others)


def test_log_of_a_command_is_a_line_each() -> None:
    formatter = QuotingFormatter("aiovblk: %(message)s")
    assert formatter.format(record("aiovblk")) == f"aiovblk: {SHOWN}"
    assert formatter.format(record("asyncio")) == "aiovblk: \\x1b]0;owned\\x07\nforged"


def test_traceback_in_a_log_keeps_its_lines_and_is_escaped() -> None:
    try:
        raise ValueError("reason\x1b[2J")
    except ValueError as exc:
        logged = record("aiovblk")
        logged.exc_info = (type(exc), exc, exc.__traceback__)
    lines = QuotingFormatter("%(message)s").format(logged).splitlines()
    assert lines[0] == SHOWN
    assert lines[-1] == r"ValueError: reason\x1b[2J"


def test_list_shows_names_of_processes_and_identities_escaped() -> None:
    device = AttachedDevice(
        driver="nbd",
        index=0,
        path="/dev/nbd0",
        size=4096,
        block_size=4096,
        read_only=False,
        rotational=False,
        flags=[],
        server_pid=1,
        server_name=EVIL,
        state="alive",  # type: ignore[arg-type]
        owner=None,
        identity=EVIL,
        in_flight=0,
        partitions=[],
        holders=[],
        used=[EVIL],
    )
    _, row = as_table([device]).split("\n")
    assert row.isprintable()
    assert row.count(SHOWN) == 3


def test_doctor_finds_in_one_line() -> None:
    assert str(ok("devices", EVIL)).isprintable()


def test_holder_of_a_device_is_named_without_its_escapes() -> None:
    assert users.opened_by(7, EVIL) == f"opened by process 7 ({SHOWN})"


def test_holder_of_a_disk_in_a_store_is_named_without_its_escapes() -> None:
    assert str(Holder(EVIL, "boot", 1, 7, 0)) == f"process 7 on {SHOWN}"


def test_name_and_fault_of_an_object_in_a_store_are_shown_without_their_escapes() -> None:
    assert str(damaged_error(EVIL, EVIL)) == f"the object {SHOWN} is damaged: {SHOWN}"


async def test_header_of_a_web_server_is_shown_without_its_escapes() -> None:
    async with serving(Web(CONTENT)) as web:
        web.change = lambda answer: answer.headers.update({"Content-Encoding": "g\x1b[2Jzip"})
        with pytest.raises(OSError, match=r"g.*zip|does not speak HTTP") as caught:
            await HTTPDevice.open(web.url())
    assert str(caught.value).isprintable()
