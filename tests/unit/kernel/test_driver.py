"""How the NBD driver is loaded, and how a device that does not exist is explained."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable

import pytest

from aiovblk import NBDUnavailableError
from aiovblk.kernel import attaching, driver, sysfs

from ...support.attach_machine import CONFIG
from ...support.kernel_tree import KernelTree


def modprobe(monkeypatch: pytest.MonkeyPatch, run: Callable[..., object] | None) -> None:
    found = "/sbin/modprobe" if run else None
    monkeypatch.setattr("aiovblk.kernel.driver.shutil.which", lambda name, path: found)
    monkeypatch.setattr("aiovblk.kernel.driver.subprocess.run", run)


def failing(*command: object, **_: object) -> subprocess.CompletedProcess[str]:
    assert command == (["/sbin/modprobe", "nbd"],)
    return subprocess.CompletedProcess([], 1, "", "modprobe: FATAL: Module nbd not found.\n")


def silent(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], 3, "", "")


def hanging(*command: list[str], **options: float) -> object:
    raise subprocess.TimeoutExpired(command[0], options["timeout"])


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (None, "modprobe is not installed"),
        (failing, "modprobe: FATAL: Module nbd not found."),
        (silent, "modprobe nbd ended with status 3"),
        (hanging, "modprobe nbd did not return in 30 s"),
    ],
)
def test_driver_that_cannot_be_loaded_is_reported_with_its_reason(
    tree: KernelTree,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., object] | None,
    reason: str,
) -> None:
    modprobe(monkeypatch, run)
    with pytest.raises(NBDUnavailableError) as caught:
        attaching.attach("/dev/nbd0", CONFIG)
    assert caught.value.errno == errno.ENODEV
    assert str(caught.value).startswith("/dev/nbd0: the kernel's NBD driver is not loaded")
    assert f"({reason})" in str(caught.value)


def test_missing_driver_is_loaded(tree: KernelTree, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        tree.device("nbd0", "43:0")
        return subprocess.CompletedProcess([], 0, "", "")

    modprobe(monkeypatch, load)
    driver.load_driver()
    assert sysfs.indices() == [0]


def test_loaded_driver_is_not_loaded_again(
    tree: KernelTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.device("nbd0", "43:0")
    modprobe(monkeypatch, None)
    driver.load_driver()


def test_missing_node_is_reported_with_the_devices_that_exist(tree: KernelTree) -> None:
    for index in range(3):
        tree.device(f"nbd{index}", f"43:{index}")
    path = str(tree.proc / "nbd9")
    with pytest.raises(NBDUnavailableError, match="/dev/nbd0 to /dev/nbd2") as caught:
        driver.resolve(path)
    assert (caught.value.errno, caught.value.path) == (errno.ENOENT, path)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("nbd3", "nbds_max=4` makes more"),
        ("nbd99", "nbds_max=100` makes more"),
        ("nbd32767", "nbds_max=32768` makes more"),
    ],
)
def test_advice_makes_the_device_that_was_wanted(tree: KernelTree, name: str, advice: str) -> None:
    for index in range(3):
        tree.device(f"nbd{index}", f"43:{index}")
    with pytest.raises(NBDUnavailableError, match=advice):
        driver.resolve(str(tree.proc / name))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nbd32768", "/dev/nbd0 to /dev/nbd2$"),  # more than the driver can have
        ("nbd1", "no such node; in a container, make it with `mknod .*/nbd1 b 43 MINOR`"),
        ("nonexistent", "NBD devices are called /dev/nbd0, /dev/nbd1 and so on$"),
        ("nbd1p1", "NBD devices are called /dev/nbd0, /dev/nbd1 and so on$"),
        ("nbd", "NBD devices are called /dev/nbd0, /dev/nbd1 and so on$"),
    ],
)
def test_no_advice_is_given_that_would_not_help(tree: KernelTree, name: str, reason: str) -> None:
    for index in range(3):
        tree.device(f"nbd{index}", f"43:{index}")
    with pytest.raises(NBDUnavailableError, match=reason):
        driver.resolve(str(tree.proc / name))


def test_no_missing_driver_is_blamed_for_what_is_no_nbd_device(
    tree: KernelTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    modprobe(monkeypatch, None)
    for path in ("/nonexistent", "/dev/sdz"):
        with pytest.raises(NBDUnavailableError, match="NBD devices are called") as caught:
            attaching.attach(path, CONFIG)
        assert "modprobe" not in str(caught.value)
    with pytest.raises(NBDUnavailableError, match="modprobe"):
        attaching.attach("/dev/nbd99", CONFIG)
