"""packaging/aiovblk@.service, as systemd runs it."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiovblk.kernel import sysfs

from .devices import GO
from .support import IMAGE, NODE, ROOT, UNIT, Writer, attached, configure, journal, run, show, until

pytestmark = pytest.mark.usefixtures("unit")

FILE = f"file:{IMAGE}"
IMAGE_DEVICE = f"{ROOT}/tests/systemd/devices.py:Image"
SURVIVE = "--identity volume-42 --survive 60"


def start() -> int:
    """Start the unit; returns its process."""
    run("systemctl", "start", UNIT)
    return int(show("MainPID"))


@contextmanager
def file_system() -> Iterator[Path]:
    """A file system on the device, mounted; whoever enters has to unmount it."""
    run("mkfs.ext4", "-q", NODE)
    point = Path("/mnt")
    run("mount", NODE, f"{point}")
    try:
        yield point
    finally:
        run("umount", f"{point}", status=None)


def in_image(name: str) -> str:
    """The content of a file in the image's file system, which has to be whole."""
    run("e2fsck", "-f", "-n", f"{IMAGE}")
    return run("debugfs", "-R", f"cat {name}", f"{IMAGE}").splitlines()[-1]


def test_active_means_that_the_device_can_be_read() -> None:
    GO.unlink(missing_ok=True)
    configure(f"{ROOT}/tests/systemd/devices.py:Held")
    run("systemctl", "start", "--no-block", UNIT)
    until(lambda: 3 in attached(), "the kernel")
    assert show("ActiveState") == "activating"
    GO.touch()
    until(lambda: show("ActiveState") == "active", "the unit")
    assert show("StatusText") == f"serving {NODE}"
    run("dd", f"if={NODE}", "of=/dev/null", "bs=4096", "count=8", "iflag=direct")


@pytest.mark.parametrize("options", ["", "--attach ioctl", SURVIVE, "--workers 2"])
def test_stop_writes_what_is_cached_and_detaches(options: str) -> None:
    configure(FILE, options)
    start()
    Path(NODE).write_bytes(b"cached")
    run("systemctl", "stop", UNIT)
    assert IMAGE.read_bytes()[:6] == b"cached"
    assert (show("ActiveState"), show("Result")) == ("inactive", "success")
    assert sysfs.is_free(3)


def test_stop_while_a_file_system_is_mounted_takes_it_away_after_a_while() -> None:
    configure(FILE, service=["TimeoutStopSec=10"])
    start()
    with file_system() as point:
        (point / "file").write_text("not synced")
        run("systemctl", "stop", "--no-block", UNIT)
        until(lambda: "still serving; signal again to force" in journal(), "the refusal")
        until(lambda: show("ActiveState") not in ("deactivating", "active"), "the end")
    assert in_image("file") == "not synced"


def test_mount_unit_that_requires_it_is_unmounted_before() -> None:
    line = next(line for line in page().splitlines() if line.startswith(NODE))
    configure(FILE)
    start()
    run("mkfs.ext4", "-q", NODE)
    run("systemctl", "stop", UNIT)
    Path("/etc/fstab").write_text(f"{line}\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "srv-data.mount")
    assert show("ActiveState") == "active"
    Path("/srv/data/file").write_text("not synced")
    run("systemctl", "stop", UNIT)
    assert not os.path.ismount("/srv/data")
    assert show("Result") == "success"
    assert in_image("file") == "not synced"


def page() -> str:
    return (ROOT / "docs" / "how-to" / "systemd.md").read_text()


def reload(process: int) -> int:
    """Have another process serve; returns it."""
    run("systemctl", "reload", UNIT)
    until(lambda: int(show("MainPID")) != process, "the successor")
    return int(show("MainPID"))


def test_reload_hands_the_device_over() -> None:
    configure(IMAGE_DEVICE, SURVIVE)
    process = start()
    with Writer(NODE) as writer:
        for _ in range(2):
            process = reload(process)
            writer.goes_on()
            assert show("ActiveState") == "active"
            assert show("StatusText") == f"serving {NODE}"
    assert show("NRestarts") == "0"
    run("systemctl", "stop", UNIT)
    assert show("Result") == "success"


@pytest.mark.parametrize("handed_over", [False, True])
def test_crash_of_a_server_with_an_identity_is_a_pause(handed_over: bool) -> None:
    configure(IMAGE_DEVICE if handed_over else FILE, SURVIVE)
    process = start()
    if handed_over:
        process = reload(process)
    with Writer(NODE) as writer:
        writer.goes_on()
        os.kill(process, signal.SIGKILL)
        writer.goes_on()
        until(lambda: show("ActiveState") == "active", "the restart")
    assert show("NRestarts") == "1"


def test_crash_without_an_identity_frees_the_device_for_the_next_server() -> None:
    configure(FILE)
    process = start()
    with open(NODE, "rb"):  # the kernel keeps a device that somebody has open
        os.kill(process, signal.SIGKILL)
        until(lambda: int(show("NRestarts")), "the restart")
    until(lambda: show("ActiveState") == "active", "the next server")
    run("dd", f"if={NODE}", "of=/dev/null", "bs=4096", "count=8", "iflag=direct")


@pytest.mark.parametrize("options", ["", "--identity volume-42 --survive 3"])
def test_device_is_freed_when_nobody_starts_its_server_again(options: str) -> None:
    configure(FILE, options, ["Restart=no"])
    process = start()
    fd = os.open(NODE, os.O_RDONLY | os.O_DIRECT)
    try:
        os.kill(process, signal.SIGKILL)
        until(lambda: show("ActiveState") == "failed", "systemd")
        with pytest.raises(OSError, match="Input/output error"):
            os.preadv(fd, [mmap.mmap(-1, 4096)], 0)  # aligned, as direct I/O wants it
    finally:
        os.close(fd)
    until(lambda: sysfs.is_free(3), "the watchdog")
