"""A machine that systemd has booted, with udev at work; `tools/vm run --systemd` makes one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovblk.kernel import sysfs

from .support import IMAGE, NODE, ROOT, SIZE, UNIT, attached, journal, run, until


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Load the driver, and install the command and its unit."""
    if not Path("/run/systemd/system").exists() or "AIOVBLK_VM" not in os.environ:
        pytest.skip("these tests change the machine: run them with tools/test systemd")
    run("modprobe", "nbd")
    command = Path("/usr/local/bin/aiovblk")
    path = f"PYTHONPATH={path_for_all()}"
    command.write_text(f'#!/bin/sh\n{path} exec {sys.executable} -m aiovblk "$@"\n')
    command.chmod(0o755)
    shutil.copy(ROOT / "packaging" / "aiovblk@.service", "/etc/systemd/system")


def path_for_all() -> str:
    """Return $PYTHONPATH as ordinary users can read it, too: a checkout may lie below /root."""
    points = []
    for number, folder in enumerate(os.environ["PYTHONPATH"].split(":")):
        points.append(f"/srv/python/{number}")
        os.makedirs(points[-1])
        run("mount", "--bind", folder, points[-1])
    return ":".join(points)


@pytest.fixture(autouse=True)
def nothing_remains() -> Iterator[None]:
    """No device is attached after a test."""
    yield
    run("udevadm", "settle")
    until(lambda: not attached(), f"devices that are still attached: {attached()}")


@pytest.fixture
def unit() -> Iterator[None]:
    """The unit, with an empty image; a test configures and starts it."""
    with open(IMAGE, "wb") as file:
        file.truncate(SIZE)
    yield
    run("systemctl", "stop", UNIT, status=None)
    run("systemctl", "reset-failed", UNIT, status=None)
    if not sysfs.is_free(3):
        print(journal())
        run("aiovblk", "unmount", "--force", NODE, status=None)
        pytest.fail("the device was still attached")
