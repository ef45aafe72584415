"""Queues of a device that the fake ublk driver serves, opened in the thread of the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aiovblk.kernel import RequestQueue
from aiovblk.storage import MemoryDevice
from aiovblk.ublk import Queue, UblkAttachment
from aiovblk.ublk.attaching import attach

from .fake_ublk import FakeUblk


@pytest.fixture(params=["USER_COPY", "buffers"])
def attachment(
    request: pytest.FixtureRequest, ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> Iterator[UblkAttachment]:
    """A device whose queue is open in this thread, by either way of copying."""
    ublk_kernel.features = 0x1FE if request.param == "USER_COPY" else 0x17E
    made = attach(None, MemoryDevice(1 << 20), RequestQueue())
    yield made
    made.undo()


def arrived(queue: Queue) -> list[int]:
    assert queue.has_requests
    tags = queue.take()
    assert not queue.has_requests
    return tags
