"""The watchdog of ublk devices as a program, with control commands that only record."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiovblk import interpreter
from aiovblk.ublk import watchdog

pytestmark = pytest.mark.slow

SOURCES = Path(watchdog.__file__).parent.parent
MARK = 1 << 63 | 5

CONTROL = """
import errno, os
from .commands import Feature, State, UblkDeviceInfo

FOLDER = {folder!r}

def info(number):
    # The first line of its file is its state, which the next line follows; the last one stays.
    try:
        with open(f"{{FOLDER}}/{{number}}") as file:
            state, mark, *rest = file.read().split(None, 2)
    except FileNotFoundError:
        raise OSError(errno.ENODEV, "no such device") from None
    if rest:
        with open(f"{{FOLDER}}/{{number}}", "w") as file:
            file.write(rest[0])
    if state == "SHORT":
        raise OSError(errno.ENOMEM, "no memory")
    return UblkDeviceInfo(number=number, flags=Feature(0), state=State[state], mark=int(mark))

class ControlledDevice:
    def __init__(self, number, flags):
        self.number = number

    def _note(self, what):
        with open(f"{{FOLDER}}/done", "a") as file:
            file.write(f"{{what}} {{self.number}}\\n")
        if self.number == 9:
            raise OSError(errno.EIO, "a fault")

    def stop(self, seconds):
        self._note("stop")

    def delete(self):
        self._note("delete")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the devices; beside it the watchdog's program, and its locks."""
    package = tmp_path / "aiovblk"
    for name in ("kernel/netlink.py", "kernel/watchdog_process.py", "ublk/commands.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCES / name, package / name)
    text = (SOURCES / "ublk/watchdog_process.py").read_text()
    assert "DEATH_TIMEOUT = 10.0" in text
    text = text.replace("DEATH_TIMEOUT = 10.0", "DEATH_TIMEOUT = 0.2")
    folder = tmp_path / "devices"
    text = text.replace("syslog.syslog(", f"open({str(folder / 'log')!r}, 'a').write(")
    (package / "ublk/watchdog_process.py").write_text(text)
    (package / "ublk/control.py").write_text(CONTROL.format(folder=str(folder)))
    folder.mkdir()
    (tmp_path / "locks").mkdir()
    return folder


def device(folder: Path, number: int, *states: str, mark: int = MARK) -> None:
    """Have a device that has these states one after the other, and whose server has died."""
    (folder / str(number)).write_text("\n".join(f"{state} {mark}" for state in states))
    (folder.parent / f"locks/ublkb{number}.lock").write_text("1:first\n")


def parent(folder: Path, code: str) -> list[str]:
    """Run a parent; what its watchdog has done when it has ended too."""
    begin = f"""
import os, signal, subprocess
from functools import partial
from pathlib import Path
from aiovblk.kernel import locks
from aiovblk.ublk import watchdog

locks.LOCKS = Path({str(folder.parent / "locks")!r})
dog = watchdog.UblkWatchdog()
dog._program = Path({str(folder.parent / "aiovblk/ublk/watchdog_process.py")!r})

def watch(number, survive=0.1, token="1:first", mark={MARK}):
    dog.watch_device(number, mark, survive, token)
"""
    # The watchdog has this pipe for as long as it lives.
    reading, writing = os.pipe()
    begin += f"subprocess.Popen = partial(subprocess.Popen, pass_fds=[{writing}])\n"
    command = [sys.executable, "-c", begin + code]
    subprocess.run(command, pass_fds=[writing], timeout=60, check=False)
    os.close(writing)
    with open(reading, "rb") as lives:
        lives.read()
    done = folder / "done"
    return done.read_text().splitlines() if done.exists() else []


def test_what_no_server_has_taken_over_is_taken_away(folder: Path) -> None:
    for number in (1, 3):
        device(folder, number, "QUIESCED")
    code = "watch(1)\nwatch(2)\nwatch(3)\ndog.forget(3)\nos.kill(os.getpid(), signal.SIGKILL)"
    assert parent(folder, code) == ["stop 1", "delete 1"]  # and 2 is gone


def test_what_has_another_server_or_is_another_device_is_left(folder: Path) -> None:
    device(folder, 1, "LIVE")  # by a server with another /run
    device(folder, 2, "QUIESCED")  # whose server has died as well, and has a watchdog of its own
    (folder.parent / "locks/ublkb2.lock").write_text("2:second\n")
    device(folder, 3, "QUIESCED", mark=MARK + 1)
    device(folder, 4, "DEAD")
    code = "for number in range(1, 5): watch(number)\nos._exit(0)"
    assert parent(folder, code) == []


def test_the_kernel_may_part_with_a_dead_server_late(folder: Path) -> None:
    device(folder, 1, "LIVE", "LIVE", "QUIESCED")
    assert parent(folder, "watch(1, 0)\nos._exit(0)") == ["stop 1", "delete 1"]


def test_a_driver_that_does_not_answer_is_asked_again(folder: Path) -> None:
    device(folder, 1, "SHORT", "SHORT", "QUIESCED")
    device(folder, 2, "SHORT")
    assert parent(folder, "watch(1, 0)\nwatch(2)\nos._exit(0)") == ["stop 1", "delete 1"]
    assert (folder / "log").read_text() == (
        "aiovblk: /dev/ublkb2 cannot be taken away: [Errno 12] no memory"
    )


def test_a_device_that_cannot_be_taken_away_is_reported(folder: Path) -> None:
    device(folder, 9, "QUIESCED")
    device(folder, 1, "QUIESCED")
    code = "watch(9)\nwatch(1, 0.3, '')\nos._exit(0)"  # no locks in this container
    assert parent(folder, code) == ["stop 9", "stop 1", "delete 1"]
    assert (folder / "log").read_text() == (
        "aiovblk: /dev/ublkb9 cannot be taken away: [Errno 5] a fault"
    )


def test_its_own_modules_do_without_the_rest_of_the_package() -> None:
    program = str(watchdog.watchdog._program)
    command = interpreter.bare_command("-X", "importtime", program, str(os.getpid()), "/nowhere")
    done = subprocess.run(command, input=b"+1 1 2 3 \n-1\n.\n", capture_output=True, check=True)
    imported = {line.rpartition(b"|")[2].strip() for line in done.stderr.splitlines()}
    assert b"aiovblk.ublk.control" in imported
    assert not imported & {b"asyncio", b"aiovblk.device", b"aiovblk.ublk.attaching"}
