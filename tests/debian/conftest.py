"""A machine that systemd has booted, and on which the package is installed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiovblk.kernel import sysfs

from ..systemd.support import ROOT, attached, run, until

INSTALL_TIMEOUT = 900.0
"""Seconds for dpkg: an emulated machine unpacks a large package slowly."""


def dpkg(*words: str) -> None:
    """Install or remove packages."""
    done = subprocess.run(
        ["dpkg", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=INSTALL_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="session", autouse=True)
def files() -> list[Path]:
    """Install the package and what it depends on; returns the files."""
    if not Path("/run/systemd/system").exists() or "AIOVBLK_VM" not in os.environ:
        pytest.skip("these tests install a package: run them with tools/test debian")
    # What these tests import is not there for the command.
    os.environ.pop("PYTHONPATH", None)
    run("modprobe", "nbd")
    (suite,) = (
        line.partition("=")[2]
        for line in Path("/etc/os-release").read_text().splitlines()
        if line.startswith("VERSION_CODENAME=")
    )
    found = sorted((ROOT / "build" / "packages" / suite / "install").glob("*.deb"))
    assert found, "tools/test debian builds the package before"
    dpkg("--install", *map(str, found))
    return found


@pytest.fixture(autouse=True)
def nothing_remains() -> Iterator[None]:
    """No device is attached after a test."""
    yield
    run("systemctl", "stop", "aiovblk@*.service", "aiovblk-serve@*", status=None)
    run("udevadm", "settle")
    for index in attached():
        run("aiovblk", "unmount", "--force", f"/dev/nbd{index}", status=None)
        pytest.fail(f"/dev/nbd{index} was still attached")
    until(lambda: all(sysfs.is_free(index) for index in sysfs.indices()), "free devices")
