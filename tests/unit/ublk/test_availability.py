"""Where ublk cannot be: each message says why, and what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aiovblk import AttachError
from aiovblk.errors import UblkUnavailableError
from aiovblk.ublk import availability, control, io_uring
from aiovblk.ublk.availability import control_error, ensure_available, refuse_bad_kernel
from aiovblk.ublk.commands import ControlCommand, Feature

from ...support.fake_io_uring import KernelRing
from ...support.fake_ublk import FakeUblk


@pytest.mark.parametrize(
    "release",
    [
        "6.18.4",
        "6.18.5",
        "6.18.4-arch1-1",
        "6.18.5+deb14-amd64",
        "6.17.0-1015-azure",
        "6.17.0-1017-aws",
        "6.17.0-1018-azure",
    ],
)
def test_kernel_that_panics_is_refused(release: str) -> None:
    with pytest.raises(
        UblkUnavailableError, match="use another kernel, or attach by NBD"
    ) as caught:
        refuse_bad_kernel(release)
    assert release in str(caught.value)


@pytest.mark.parametrize(
    "release",
    [
        "6.18.3",
        "6.18.6",
        "6.18.40",
        "6.18.44",
        "6.18.55-generic",
        "16.18.4",
        "6.17.0-1014-azure",
        "6.17.0-1016-aws",
        "6.17.0-1019-azure",
        "6.17.0-1015-gcp",
        "6.17.0-15-generic",
        "6.17.0-10150-azure",
        "6.12.95+deb13-amd64",
    ],
)
def test_its_neighbours_are_not(release: str) -> None:
    refuse_bad_kernel(release)


def test_kernel_that_runs_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.uname_result(("Linux", "host", "6.18.4", "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: found)
    monkeypatch.setattr(control, "features", lambda: pytest.fail("a command was sent"))
    with pytest.raises(UblkUnavailableError, match=r"Linux 6\.18\.4 panics"):
        ensure_available()


def test_features_are_those_of_the_driver(ublk_kernel: FakeUblk) -> None:
    ublk_kernel.features = 0x1FE
    assert Feature.USER_COPY in ensure_available()
    assert Feature.UPDATE_SIZE not in ensure_available()
    assert ublk_kernel.leaks() == []


@pytest.mark.parametrize(
    ("number", "sysctl", "words"),
    [
        (errno.ENOSYS, 0, "this kernel has no io_uring"),
        (
            errno.EPERM,
            1,
            "the sysctl kernel.io_uring_disabled is 1; or join the group of"
            " kernel.io_uring_group, set it to 0",
        ),
        (errno.EPERM, 2, "the sysctl kernel.io_uring_disabled is 2; set it to 0"),
        (errno.EPERM, 0, "seccomp filter, as that of a container: allow it"),
        (errno.EINVAL, 0, "this kernel's is too old: that takes Linux 6.5"),
        (errno.ENOMEM, 0, "io_uring cannot be set up: .*Cannot allocate memory"),
    ],
)
def test_io_uring_that_is_refused(
    ublk_kernel: FakeUblk,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    sysctl: int,
    words: str,
) -> None:
    ublk_kernel.uring.errors["io_uring_setup"] = [number]
    monkeypatch.setattr(io_uring, "disabled_by_sysctl", lambda: sysctl)
    with pytest.raises(UblkUnavailableError, match=f"ublk takes io_uring; .*{words}") as caught:
        ensure_available()
    assert caught.value.errno == number
    assert ublk_kernel.log == []


@pytest.mark.parametrize(
    ("content", "level"), [("0\n", 0), ("1\n", 1), ("2\n", 2), ("", 0), (None, 0)]
)
def test_sysctl(
    content: str | None, level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "io_uring_disabled"
    if content is not None:
        file.write_text(content)
    real = open
    monkeypatch.setattr(
        io_uring,
        "open",
        lambda path, **options: real(
            file if path == "/proc/sys/kernel/io_uring_disabled" else path, **options
        ),
        raising=False,
    )
    assert io_uring.disabled_by_sysctl() == level


def test_driver_that_cannot_be_loaded(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def modprobe(module: str) -> str:
        loaded.append(module)
        return "modprobe: FATAL: Module ublk_drv not found"

    monkeypatch.setattr(availability, "modprobe", modprobe)
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    with pytest.raises(UblkUnavailableError) as caught:
        ensure_available()
    assert caught.value.errno == errno.ENODEV
    for words in (
        "/dev/ublk-control",
        "Module ublk_drv not found",
        "Debian's kernels since 6.12",
        "linux-modules-extra",
        "In a container the node has to be passed in",
    ):
        assert words in str(caught.value)
    assert loaded == ["ublk_drv"]


def test_driver_is_loaded(ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch) -> None:
    exists: list[bool] = []

    def modprobe(module: str) -> str:
        exists.append(True)
        return "modprobe ublk_drv ended with status 0"

    monkeypatch.setattr(availability, "modprobe", modprobe)
    monkeypatch.setattr(os.path, "exists", lambda path: bool(exists))
    assert ensure_available()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_control_node_of_root(number: int) -> None:
    error = control_error(OSError(number, os.strerror(number)))
    assert not isinstance(error, UblkUnavailableError)
    assert error.errno == number
    assert error.path == "/dev/ublk-control"
    assert "run as root, or have an administrator allow it (docs/how-to/ublk.md" in str(error)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_driver_without_get_features(ublk_kernel: FakeUblk, number: int) -> None:
    ublk_kernel.failing["GET_FEATURES"] = number
    with pytest.raises(UblkUnavailableError, match=r"does not say what it can do, .* Linux 6\.5"):
        ensure_available()


def test_driver_that_does_not_answer(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ublk_kernel.stuck = {"GET_FEATURES"}
    before = len(control._abandoned)
    with pytest.raises(TimeoutError, match=r"GET_FEATURES has not ended in 0\.01 s"):
        control._send(ControlCommand.GET_FEATURES, None, content=bytes(8), seconds=0.01)
    # The kernel may still write its answer: what that is written to is kept.
    assert len(control._abandoned) == before + 1
    ublk_kernel.free()
    assert ublk_kernel.leaks() == []
    monkeypatch.setattr(control, "features", lambda: control._send(ControlCommand.START_DEV, 9))
    with pytest.raises(AttachError, match="START_DEV: No such device"):
        ensure_available()


def test_buffer_of_a_command_whose_wait_fails_is_kept(ublk_kernel: FakeUblk) -> None:
    """As that of one that has not ended: the kernel has it yet."""
    ublk_kernel.stuck = {"GET_FEATURES"}

    def refuse(ring: KernelRing) -> None:
        ring.refuses_to_wait = errno.EINVAL

    ublk_kernel.uring.on_setup = refuse
    before = len(control._abandoned)
    with pytest.raises(OSError, match="io_uring_enter: Invalid argument"):
        control.features()
    assert len(control._abandoned) == before + 1
