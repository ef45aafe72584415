"""The queue of a device that survives its server: what it owes goes to the next one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from aiovblk.kernel import RequestQueue
from aiovblk.storage import MemoryDevice
from aiovblk.ublk import UblkAttachment
from aiovblk.ublk.attaching import attach
from aiovblk.ublk.commands import RECOVERY

from ...support.fake_io_uring import KernelRing
from ...support.fake_ublk import FakeUblk, Op


@pytest.fixture
def attachment(ublk_kernel: FakeUblk) -> Iterator[UblkAttachment]:
    """A device whose driver has granted that it survives."""
    made = attach(None, MemoryDevice(1 << 20), RequestQueue())
    made.info = replace(made.info, flags=made.info.flags | RECOVERY)
    yield made
    made.undo()


def test_what_waits_for_a_server_comes_while_the_queue_is_opened(
    attachment: UblkAttachment, ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, answers = ublk_kernel.device, []
    fetch = device.fetch

    def fetch_all(ring: KernelRing, tag: int, address: int) -> None:
        fetch(ring, tag, address)
        if tag == attachment.info.depth - 1:
            answers.append(ublk_kernel.send(Op.FLUSH))

    monkeypatch.setattr(device, "fetch", fetch_all)
    queue = attachment.open_queue()
    (answer,) = answers
    assert queue.has_requests
    (tag,) = queue.take()
    assert not queue.has_requests
    assert queue.take() == []
    queue.complete(tag, 0)
    queue.submit()
    assert answer.result() == b""
    queue.close()


def test_what_is_owed_is_not_failed_when_the_queue_is_closed(
    attachment: UblkAttachment, ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was taken or not: the driver sends it again."""
    queue = attachment.open_queue()
    ublk_kernel.send(Op.READ, 0, 512)
    assert len(queue.take()) == 1
    ublk_kernel.send(Op.READ, 0, 512)
    committed: list[int] = []
    device = ublk_kernel.device
    monkeypatch.setattr(device, "commit", lambda tag, *_: committed.append(tag))
    queue.close()
    assert committed == []
