"""packaging/udev: whose a ublk device is, for udev; the script has no code of the package."""

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
RULES = PACKAGING / "60-ublk-users.rules"

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
    monkeypatch.setattr(script.os, "open", lambda path, flags: 0)
    return found


def device(owner: int, flags: Feature) -> UblkDeviceInfo:
    return UblkDeviceInfo(number=3, owner=owner, flags=flags, state=State.DEAD)


@pytest.mark.parametrize("name", ["ublkc3", "ublkb3", "ublkb3p1"])
def test_owner_of_an_ordinary_users_device_is_printed(
    script: ModuleType, answers: Answers, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    answers[3] = device(1000, Feature.UNPRIVILEGED_DEV)
    assert script.main(name) == 0
    assert capsys.readouterr().out == "1000\n"


@pytest.mark.parametrize("name", ["ublkc3", "ublkc4", "ublk-control", "ublkb", "sda", "ublkc3x"])
def test_roots_device_and_what_is_none_have_no_owner(
    script: ModuleType, answers: Answers, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    answers[3] = device(0, Feature.USER_COPY)
    assert script.main(name) == 1
    assert capsys.readouterr().out == ""


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


def test_rules_name_the_script_that_the_page_installs() -> None:
    page = (PACKAGING.parents[1] / "docs/how-to/ublk.md").read_text()
    assert 'PROGRAM=="/usr/local/sbin/ublk-owner %k"' in RULES.read_text()
    assert "install -m 755 packaging/udev/ublk-owner /usr/local/sbin/\n" in page
    assert f"install -m 644 packaging/udev/{RULES.name} /etc/udev/rules.d/\n" in page
