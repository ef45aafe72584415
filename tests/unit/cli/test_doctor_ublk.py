"""What the doctor says of ublk, and of devices that have lost their server."""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path

import pytest

from aiovblk import cli
from aiovblk.cli.doctor import devices, ublk
from aiovblk.ublk import io_uring
from aiovblk.ublk.commands import Feature, State

from ...support.doctor_host import Host, lines
from ...support.ublk_tree import UblkTree


def without_driver(host: Host, modules: str | None) -> str:
    host.ublk_control.unlink()
    if modules is not None:
        host.tree.write(host.root / "lib/modules/6.12.1/modules.dep", modules)
    (line,) = lines(ublk.driver)
    return line


# Whether it can be used


def test_driver_that_answers_can_be_used(host: Host) -> None:
    assert lines(ublk.driver) == ["ok    ublk: can be used"]
    host.ublk_features = Feature.USER_COPY
    host.ublk_control.chmod(0o660)
    assert lines(ublk.driver) == [
        "ok    ublk: can be used, by ordinary users too; devices cannot be resized"
    ]


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        (None, "info  ublk: this user may make devices, but has no udev rules that give it"),
        ('KERNEL=="ublk-control", GROUP="ublk"', "info  ublk: this user may make devices, but"),
        ('KERNEL=="ublk[bc][0-9]*", OWNER="%c"', "ok    ublk: can be used by this user"),
    ],
)
def test_ordinary_user_takes_rules_of_udev(host: Host, rules: str | None, line: str) -> None:
    host.capabilities(0)
    if rules is not None:
        host.tree.write(host.root / "udev/rules.d/60-ublk.rules", rules)
    (found,) = lines(ublk.driver)
    assert found.startswith(line)


def test_rules_of_the_package_are_found(host: Host) -> None:
    rules = (Path(__file__).parents[3] / "packaging/udev/59-ublk-users.rules").read_text()
    test_ordinary_user_takes_rules_of_udev(host, rules, "ok    ublk: can be used by this user")


def test_user_without_rights_sees_what_gives_them(host: Host) -> None:
    host.capabilities(0)
    host.ublk_features = OSError(errno.EACCES, "no")
    (line,) = lines(ublk.driver)
    assert line.startswith("info  ublk: cannot be used: ")
    assert "takes access to " in line
    assert "docs/how-to/ublk.md" in line


def test_driver_that_can_be_loaded_is_no_problem(host: Host) -> None:
    modules = "kernel/drivers/block/ublk_drv.ko.xz:\n"
    assert without_driver(host, modules) == (
        "info  ublk: its driver is not loaded yet; a mount by ublk loads it"
    )


def test_driver_that_only_root_can_load_has_the_command(host: Host) -> None:
    host.capabilities(0)
    line = without_driver(host, "kernel/drivers/block/ublk_drv.ko.xz:\n")
    assert line == "info  ublk: its driver is not loaded; run `sudo modprobe ublk_drv`"


@pytest.mark.parametrize(
    ("modules", "words"),
    [(None, "in a container it is passed in"), ("fs/ext4.ko:", "this kernel (6.12.1) does not")],
)
def test_kernel_without_the_driver_is_no_problem(
    host: Host, modules: str | None, words: str
) -> None:
    line = without_driver(host, modules)
    assert line.startswith("info  ublk: ")
    assert words in line


@pytest.mark.parametrize(
    ("number", "sysctl", "words"),
    [
        (errno.ENOSYS, None, "has no io_uring"),
        (errno.EPERM, 2, "kernel.io_uring_disabled is 2"),
        (errno.EPERM, None, "refused by a seccomp filter"),
    ],
)
def test_io_uring_that_is_refused_is_explained(
    host: Host, monkeypatch: pytest.MonkeyPatch, number: int, sysctl: int | None, words: str
) -> None:
    host.io_uring_refusal = OSError(number, os.strerror(number))
    monkeypatch.setattr(io_uring, "disabled_by_sysctl", lambda: sysctl)
    (line,) = lines(ublk.driver)
    assert line.startswith("info  ublk: cannot be used: ublk takes io_uring; ")
    assert words in line


@pytest.mark.parametrize("release", ["6.18.4", "6.18.5-arch1", "6.17.0-1017-azure"])
def test_kernel_that_panics_is_named_and_not_asked(
    host: Host, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    host.ublk_features = OSError(errno.EIO, "asked")
    (line,) = lines(ublk.driver)
    assert line.startswith(f"info  ublk: cannot be used: Linux {release} panics")


# Devices


def test_device_is_served_lost_dead_or_unknown(host: Host, ublk_tree: UblkTree) -> None:
    ublk_tree.add(0)
    ublk_tree.add(1, state=State.QUIESCED, server=-1)
    ublk_tree.add(2, state=State.DEAD, server=-1)
    assert lines(devices.attached) == [
        "ok    devices: /dev/ublkb0 is served",
        "warn  devices: /dev/ublkb1 waits for another server, or unmount it by force; run"
        " `aiovblk unmount --force /dev/ublkb1`",
        "warn  devices: /dev/ublkb2: its server is gone, and what is left of the device takes its"
        " number; run `aiovblk doctor --clean`",
    ]
    ublk_tree.refusal = OSError(errno.EPERM, "no")
    assert lines(devices.attached)[0] == (
        "info  devices: /dev/ublkb0: whether it is served is for its user and root to see"
    )


@pytest.mark.parametrize(
    ("opens", "stack", "where", "device"),
    [
        ("/dev/ublkb0", "", "/dev/ublkb0", "/dev/ublkb0"),
        ("/dev/sda", "[<0>] ublk_ctrl_stop_dev+0x1/0x2 [ublk_drv]", "a ublk device", "/dev/ublkbN"),
    ],
)
def test_task_that_hangs_is_named_with_its_device(
    host: Host, ublk_tree: UblkTree, opens: str, stack: str, where: str, device: str
) -> None:
    ublk_tree.add(0)
    host.tree.process(98, "dd", opens=(opens,))
    host.tree.task(98, "dd", state="D", stack=stack)
    (line,) = lines(devices.hung_tasks)
    assert line.startswith(f"warn  stuck: task 98 (dd) waits for {where}; if its server")
    assert line.endswith(f"run `aiovblk unmount --force {device}`")


# --clean


@pytest.fixture
def dead(host: Host, ublk_tree: UblkTree) -> UblkTree:
    """One device that is served, one that is not, and one that is about to be."""
    host.tree.kernel_threads()
    ublk_tree.add(0)
    ublk_tree.add(1, state=State.DEAD, server=-1)
    ublk_tree.add(2, state=State.DEAD, server=77)
    return ublk_tree


def test_dead_device_is_removed_and_no_other(
    dead: UblkTree, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--clean"]) == 0
    assert capsys.readouterr().out == "ok    clean: /dev/ublkb1 is removed\n"
    assert dead.log == ["delete 1"]
    assert cli.main(["doctor", "--clean"]) == 0
    assert capsys.readouterr().out == "ok    clean: no device without a server\n"


def test_dry_run_removes_nothing(dead: UblkTree, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--dry-run"]) == 0
    expected = "info  clean: /dev/ublkb1: would remove what is left of it\n"
    assert capsys.readouterr().out == expected
    assert dead.log == []


def test_device_that_the_driver_keeps_is_a_failure(
    dead: UblkTree, capsys: pytest.CaptureFixture[str]
) -> None:
    dead.delete_error = OSError(errno.EBUSY, "no")
    assert cli.main(["doctor", "--clean"]) == 1
    assert "fail  clean: /dev/ublkb1: the driver does not remove it" in capsys.readouterr().out
