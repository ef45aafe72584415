"""The attributes of a request queue, set and put back."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from aiovblk.errors import AttachError
from aiovblk.kernel import AttachConfig, request_queue, resizing
from aiovblk.kernel.attachment import Attachment

from ...support.kernel_tree import KernelTree


@pytest.fixture
def files(tree: KernelTree) -> Path:
    directory = tree.device("nbd3", "43:96") / "queue"
    tree.write(directory / "scheduler", "[mq-deadline] kyber none\n")
    tree.write(directory / "max_sectors_kb", "128\n")
    tree.write(directory / "read_ahead_kb", "256\n")
    return directory


def test_what_is_changed_is_remembered_once(files: Path) -> None:
    before: dict[str, str] = {}
    request_queue.apply(3, before, scheduler="none", max_sectors_kb=1024, read_ahead_kb=None)
    assert before == {"scheduler": "mq-deadline", "max_sectors_kb": "128"}
    assert (files / "scheduler").read_text() == "none"
    assert (files / "max_sectors_kb").read_text() == "1024"
    assert (files / "read_ahead_kb").read_text() == "256\n"
    request_queue.apply(3, before, max_sectors_kb=64)
    assert before["max_sectors_kb"] == "128"


def test_what_is_set_already_or_missing_is_left_alone(files: Path) -> None:
    before: dict[str, str] = {}
    request_queue.apply(3, before, scheduler="mq-deadline", max_sectors_kb=128, wbt_lat_usec=5)
    assert before == {}
    assert (files / "scheduler").read_text() == "[mq-deadline] kyber none\n"


def test_a_refused_value_is_reported_with_the_choices(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(index: int, name: str, value: str) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(request_queue, "_write", refuse)
    with pytest.raises(AttachError, match="refuses scheduler=bfq; it knows mq-deadline, kyber, no"):
        request_queue.apply(3, {}, scheduler="bfq")
    with pytest.raises(AttachError, match=r"refuses max_sectors_kb=4$"):
        request_queue.apply(3, {}, max_sectors_kb=4)


class Resized(Attachment):
    """An attachment whose device has any size at once."""

    blocks = 1

    def set_size(self, blocks: int) -> None:
        self.blocks = blocks

    def start(self) -> None: ...
    def disconnect_kernel(self) -> None: ...
    def _open_live(self) -> None: ...
    def _close_node(self) -> None: ...
    def _sync_without_node(self) -> None: ...
    def _control(self) -> nullcontext[int]:
        return nullcontext(-1)


def test_a_device_is_resized_although_its_read_ahead_is_refused(
    files: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(index: int, name: str, value: str) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    config = AttachConfig(
        [], block_size=512, blocks=1, flags=0, timeout=0, queue=request_queue.RequestQueue()
    )
    attachment = Resized(3, "/dev/nbd3", -1, config)
    resizing.resize(attachment, 2)
    assert (files / "read_ahead_kb").read_text() == "4096"
    (files / "read_ahead_kb").write_text("256\n")
    monkeypatch.setattr(request_queue, "_write", refuse)
    resizing.resize(attachment, 3)
    assert attachment.blocks == 3
    assert "refuses read_ahead_kb=4096" in caplog.text


def test_where_sys_cannot_be_written_a_warning_is_logged(
    files: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(index: int, name: str, value: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(request_queue, "_write", refuse)
    before: dict[str, str] = {}
    request_queue.apply(3, before, max_sectors_kb=4)
    assert before == {}
    assert caplog.record_tuples == [
        (
            "aiovblk",
            logging.WARNING,
            "max_sectors_kb of /dev/nbd3 stays 128: Read-only file system",
        )
    ]


def test_device_that_is_detached_meanwhile_is_not_warned_of(
    files: Path, tree: KernelTree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def detach(index: int, name: str, value: str) -> None:
        tree.remove("nbd3", "43:96")
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(request_queue, "_write", detach)
    before: dict[str, str] = {}
    request_queue.apply(3, before, max_sectors_kb=4, read_ahead_kb=8)
    assert before == {}
    assert not caplog.records
