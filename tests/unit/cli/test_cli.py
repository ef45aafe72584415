"""Exit statuses, errors and logging of the command."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

import aiovblk
from aiovblk import cli
from aiovblk.cli import list_devices
from aiovblk.cli.list_devices import AttachedDevice


@pytest.fixture(autouse=True)
def asyncio_log_level() -> Iterator[None]:
    logger = logging.getLogger("asyncio")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["format"],
        ["mount"],
        ["mount", "memory:1M", "/dev/nbd0", "/dev/nbd1"],
        ["mount", "memory:1M", "--concurrency", "many"],
        ["mount", "memory:1M", "--concurrency", "0"],
        ["mount", "memory:1M", "--unmount-timeout", "soon"],
        ["mount", "memory:1M", "--unmount-timeout", "-1"],
        ["mount", "memory:1M", "--handler-timeout", "0"],
        ["mount", "memory:1M", "--slow-request", "0"],
        ["mount", "memory:1M", "--timeout", "0"],
        ["mount", "memory:1M", "--loop", "twisted"],
        ["unmount"],
        ["unmount", "/dev/nbd0", "--hard"],
        ["list", "/dev/nbd0"],
    ],
)
def test_wrong_call_is_status_2_and_a_word_about_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    output, errors = capsys.readouterr()
    assert caught.value.code == 2
    assert output == ""
    assert errors.startswith("usage: aiovblk")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["mount", "memory:8000P"], "a process cannot address as much"),
        (["mount", "nowhere:disk"], "there is no module 'nowhere'"),
        (["mount", "aiovblk:BlockDevice"], "blocks must be at least 1, not 0"),
        (["unmount", "/dev/null"], "/dev/null: not a block device"),
        (["unmount", "--force", "/nowhere/nbd0"], "/nowhere/nbd0: no such device"),
    ],
)
def test_error_is_status_1_and_one_line(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main(arguments)
    output, errors = capsys.readouterr()
    assert status == 1
    assert output == ""
    assert errors.startswith("aiovblk: ")
    assert errors.count("\n") == 1
    assert reason in errors


def test_interrupted_command_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> list[AttachedDevice]:
        raise KeyboardInterrupt

    monkeypatch.setattr(list_devices, "attached", interrupted)
    assert cli.main(["list"]) == 130


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"aiovblk {aiovblk.__version__}\n"


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiovblk", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_program_prints_errors_without_a_traceback_unless_it_is_verbose() -> None:
    done = run_program("unmount", "/dev/null")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "aiovblk: /dev/null: not a block device\n"
    verbose = run_program("--verbose", "unmount", "/dev/null")
    assert verbose.returncode == 1
    assert "Traceback (most recent call last)" in verbose.stderr
    assert verbose.stderr.endswith(done.stderr)
