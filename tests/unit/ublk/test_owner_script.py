"""packaging/udev: udev gives a ublk device to its user; the script has no code of the package."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from aiovblk.ublk.commands import CTRL_COMMAND, ControlCommand, Feature, State, UblkDeviceInfo

PACKAGING = Path(__file__).parents[3] / "packaging/udev"
SCRIPT = PACKAGING / "ublk-owner"
RULES = PACKAGING / "59-ublk-users.rules"

Answers = dict[int, UblkDeviceInfo]
"""What the driver answers, by the number of the device."""


@pytest.fixture
def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("ublk_owner", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def answers(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Have the script ask these, in place of the driver."""
    found: Answers = {}

    def send(control: int, command: int, payload: bytes) -> int:
        number, queue, length, address, data, before, *rest = CTRL_COMMAND.unpack(payload)
        assert command == ControlCommand.GET_DEV_INFO2.number
        assert (queue, data, rest) == (0xFFFF, 0, [0, 0])
        assert ctypes.string_at(address, before) == b"/dev/ublkc%d\0" % number
        if number not in found:
            return -19
        fields = script.DEVICE_INFO.unpack(found[number].pack())
        answer = script.DEVICE_INFO.pack(*fields[:10], found[number].owner, *fields[11:])
        assert length == before + len(answer)
        ctypes.memmove(address + before, answer, len(answer))
        return 0

    monkeypatch.setattr(script, "send", send)
    return found


@pytest.fixture(autouse=True)
def nodes(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What becomes of nodes and who owns them, in order; each that is opened exists."""
    log: list[str] = []

    def fake_open(path: str, flags: int) -> int:
        log.append(f"open {path}")
        return 100 + len(log)

    monkeypatch.setattr(script.os, "open", fake_open)
    monkeypatch.setattr(
        script.os, "chown", lambda path, user, group: log.append(f"chown {path} {user} {group}")
    )
    return log


def device(owner: int, flags: Feature) -> UblkDeviceInfo:
    return UblkDeviceInfo(number=3, owner=owner, flags=flags, state=State.DEAD)


@pytest.mark.parametrize("name", ["ublkc3", "ublkb3", "ublkb3p1"])
def test_node_of_an_ordinary_users_device_becomes_the_users(
    script: ModuleType,
    answers: Answers,
    nodes: list[str],
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    answers[3] = device(1000, Feature.UNPRIVILEGED_DEV)
    assert script.main(name) == 0
    assert capsys.readouterr().out == "1000\n"
    # The node that was opened before the driver was asked, whatever has its name by now.
    assert nodes == [
        f"open /dev/{name}", "open /dev/ublk-control", "chown /proc/self/fd/101 1000 -1",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["ublkc3", "ublkc4", "ublk-control", "ublkb", "sda", "ublkc3x"])
def test_roots_device_and_what_is_none_stay_as_they_are(
    script: ModuleType,
    answers: Answers,
    nodes: list[str],
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    answers[3] = device(0, Feature.USER_COPY)
    assert script.main(name) == 1
    assert capsys.readouterr().out == ""
    assert not [line for line in nodes if line.startswith("chown")]


def test_script_takes_nothing_from_outside_of_the_standard_library() -> None:
    text = SCRIPT.read_text()
    assert text.startswith("#!/usr/bin/python3 -I\n")
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) <= sys.stdlib_module_names


def test_script_fails_in_a_line_where_there_is_no_driver() -> None:
    command = [sys.executable, "-I", str(SCRIPT), "ublkc1048575"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) <= 1  # none where there is a driver


@pytest.mark.parametrize("words", [[], ["ublkc0", "ublkc1"]])
def test_script_takes_one_device(words: list[str]) -> None:
    command = [sys.executable, "-I", str(SCRIPT), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "usage: ublk-owner ublkcN\n"


def test_rules_name_the_script_that_the_page_installs() -> None:
    page = (PACKAGING.parents[1] / "docs/how-to/ublk.md").read_text()
    assert 'PROGRAM=="/usr/local/sbin/ublk-owner %k"' in RULES.read_text()
    # What they set is for udev's own rules, and overrides what those before have set.
    assert "50-udev-default.rules" < RULES.name < "60-persistent-storage.rules"
    assert "install -m 755 packaging/udev/ublk-owner /usr/local/sbin/\n" in page
    assert f"install -m 644 packaging/udev/{RULES.name} /etc/udev/rules.d/\n" in page
