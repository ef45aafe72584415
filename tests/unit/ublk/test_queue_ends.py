"""How a queue ends: stopped, closed, not opened, without its thread, in forked children."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from aiovblk.kernel import RequestQueue
from aiovblk.storage import MemoryDevice
from aiovblk.threads import run_in_daemon_thread
from aiovblk.ublk import Queue, UblkAttachment, attaching
from aiovblk.ublk.attaching import attach

from ...support.fake_ublk import FakeUblk, Op
from ...support.ublk_queue import arrived

pytestmark = pytest.mark.slow


def test_all_tags_come_back_when_the_device_is_stopped(
    attachment: UblkAttachment, ublk_kernel: FakeUblk
) -> None:
    queue = attachment.open_queue()
    stopped = ublk_kernel.send(Op.READ, 0, 512)
    (tag,) = arrived(queue)
    stopping = ublk_kernel.stop_from_outside()
    assert not queue.is_over
    queue.place(tag, bytes(512))
    queue.complete(tag, 512)
    queue.submit()
    stopping.result()
    assert stopped.result() == bytes(512)
    assert queue.take() == []
    assert queue.is_over
    assert queue.error is None
    queue.close()


def test_other_errors_of_a_tag_are_errors_of_the_queue(
    attachment: UblkAttachment, ublk_kernel: FakeUblk
) -> None:
    queue = attachment.open_queue()
    ublk_kernel.failing["COMMIT"] = errno.EINVAL
    ublk_kernel.send(Op.READ, 0, 512)
    (tag,) = arrived(queue)
    queue.complete(tag, -errno.EIO)
    queue.submit()
    assert queue.take() == []
    assert isinstance(queue.error, OSError)
    assert queue.error.errno == errno.EINVAL
    assert not queue.is_over
    queue.close()


def test_closed_queue_does_nothing(attachment: UblkAttachment, ublk_kernel: FakeUblk) -> None:
    ended = attachment.ended
    queue = attachment.open_queue()
    unanswered = [ublk_kernel.send(Op.READ, 0, 512) for _ in range(200)]
    tags = arrived(queue)
    assert len(tags) == 128
    queue.complete(tags[0], 512)
    queue.close()
    assert ended.done()
    for answer in unanswered[1:]:
        with pytest.raises(OSError, match="answer"):
            answer.result()
    queue.close()
    assert not queue.has_requests
    assert queue.take() == []
    with pytest.raises(OSError, match="the device is gone"):
        queue.place(tags[1], bytes(512))
    queue.complete(tags[1], 0)
    assert queue.unsubmitted == 0
    queue.submit()
    assert ublk_kernel.log.count("the queue is closed") == 1


@pytest.mark.parametrize("error", [0, errno.EAGAIN])
def test_results_that_are_ready_when_the_queue_is_closed_reach_the_kernel(
    attachment: UblkAttachment, ublk_kernel: FakeUblk, error: int
) -> None:
    """They may be those of all tags, and then the driver would not notice the end."""
    queue = attachment.open_queue()
    reads = [ublk_kernel.send(Op.READ, 0, 512) for _ in range(128)]
    for tag in arrived(queue):
        queue.place(tag, bytes(512))
        queue.complete(tag, 512)
    if error:
        ublk_kernel.ring.errors.append(error)
        queue.submit()
        assert queue.unsubmitted == 128
        ublk_kernel.ring.errors.append(error)
    queue.close()
    assert [each.result() for each in reads] == [bytes(512)] * 128


def test_requests_that_come_in_place_of_the_last_ones_fail_as_well(
    attachment: UblkAttachment, ublk_kernel: FakeUblk
) -> None:
    queue = attachment.open_queue()
    reads = [ublk_kernel.send(Op.READ, 0, 512) for _ in range(300)]
    assert len(queue.take()) == 128
    queue.close()
    for each in reads:
        with pytest.raises(OSError, match="answer"):
            each.result()


def fail_setup(kernel: FakeUblk) -> None:
    kernel.uring.errors["io_uring_setup"] = [errno.ENOMEM]


def fail_mapping(nth: int) -> Callable[[FakeUblk], None]:
    def fail(kernel: FakeUblk) -> None:
        kernel.uring.errors["mmap"] = [0] * nth + [errno.ENOMEM]

    return fail


def fail_enter(number: int) -> Callable[[FakeUblk], None]:
    def fail(kernel: FakeUblk) -> None:
        kernel.uring.on_setup = lambda ring: ring.errors.append(number)

    return fail


def fail_fetch(kernel: FakeUblk) -> None:
    kernel.failing["FETCH"] = errno.EBUSY


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        (fail_setup, errno.ENOMEM),
        (fail_mapping(0), errno.ENOMEM),
        (fail_mapping(1), errno.ENOMEM),
        (fail_mapping(2), errno.ENOMEM),
        (fail_mapping(3), errno.ENOMEM),
        (fail_enter(errno.EINVAL), errno.EINVAL),
        (fail_enter(errno.EAGAIN), errno.EIO),
        (fail_fetch, errno.EBUSY),
    ],
)
def test_queue_that_cannot_be_opened_leaves_nothing(
    ublk_kernel: FakeUblk,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[FakeUblk], None],
    number: int,
) -> None:
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    ublk_kernel.features = 0x17E
    attachment = attach(None, MemoryDevice(1 << 20), RequestQueue())
    fault(ublk_kernel)
    with pytest.raises(OSError, match=r".") as caught:
        attachment.open_queue()
    assert caught.value.errno == number
    del caught
    gc.collect()
    assert ignored == []
    ublk_kernel.uring.on_setup = lambda ring: None
    assert not attachment.ended.done()
    assert (ublk_kernel.uring.rings, ublk_kernel.uring.mapped) == ({}, {})
    attachment.undo()
    assert ublk_kernel.leaks() == []


def test_queue_is_closed_and_its_device_deleted_when_its_thread_ends(
    attachment: UblkAttachment, ublk_kernel: FakeUblk
) -> None:
    queues: list[Queue] = []
    requests: list[Future[bytes]] = []

    def serve() -> None:
        queues.append(attachment.open_queue())
        requests.extend(ublk_kernel.send(Op.READ, 0, 512) for _ in range(128))
        assert len(queues[0].take()) == 128  # the driver has none: it would not notice the end

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert ublk_kernel.leaks() == []
    assert attachment.ended.done()
    assert attachment.is_closed
    assert not queues[0].has_requests
    for each in requests:
        with pytest.raises(OSError, match="answer"):
            each.result()


def test_garbage_is_closed_and_its_device_deleted(
    attachment: UblkAttachment, ublk_kernel: FakeUblk
) -> None:
    queue = attachment.open_queue()
    del queue
    gc.collect()
    assert ublk_kernel.leaks() == []
    assert attachment.is_closed


def test_end_that_cannot_have_a_thread_is_done_where_it_is(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the interpreter exits."""
    attachment = attach(None, MemoryDevice(1 << 20), RequestQueue())
    queue = attachment.open_queue()

    def refuse(*_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    # What carries out the fake's commands is started otherwise on some versions of Python.
    monkeypatch.setattr(
        "aiovblk.ublk.attachment._thread", type("", (), {"start_new_thread": refuse})
    )
    del queue
    gc.collect()
    assert attachment.is_closed
    assert ublk_kernel.leaks() == []


# Forked children


def in_child(look: Callable[[], bool]) -> bool:
    """Whether a forked child finds something to be so."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            status = 0 if look() else 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_does_nothing_to_the_device(
    attachment: UblkAttachment, ublk_kernel: FakeUblk
) -> None:
    queue = attachment.open_queue()
    ublk_kernel.send(Op.READ, 0, 512)
    fd, log = queue.fd, list(ublk_kernel.log)

    def does_nothing() -> bool:
        queue.close()
        gc.collect()
        attachment.disconnect()
        attachment.undo()
        attachment.abandon()
        return (
            not queue.has_requests
            and queue.take() == []
            and os.path.samefile(f"/proc/self/fd/{fd}", os.devnull)
            and ublk_kernel.log == log
        )

    assert in_child(does_nothing)
    (tag,) = arrived(queue)
    queue.place(tag, bytes(512))
    queue.complete(tag, 512)
    queue.submit()
    queue.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_child_forked_by_another_thread_does_nothing_to_the_device(
    attachment: UblkAttachment, ublk_kernel: FakeUblk
) -> None:
    """The child forgets the thread that serves, at once, and all that belongs to it."""
    has_queue, may_end = threading.Event(), threading.Event()

    def serve() -> None:
        queue = attachment.open_queue()
        has_queue.set()
        may_end.wait()
        queue.close()

    serving = run_in_daemon_thread(serve)
    assert has_queue.wait(60)
    log = list(ublk_kernel.log)
    found = in_child(lambda: gc.collect() >= 0 and ublk_kernel.log == log)
    may_end.set()
    serving.result()
    assert found


def test_attachment_that_was_stopped_is_not_started(
    attachment: UblkAttachment, ublk_kernel: FakeUblk
) -> None:
    queue = attachment.open_queue()
    attachment.disconnect()
    with pytest.raises(OSError, match="it was stopped before it was live") as caught:
        attachment.wait_until_live(30)
    assert caught.value.errno == errno.ECANCELED
    assert "START_DEV" not in ublk_kernel.log
    assert queue.take() == []
    queue.close()
    attachment.disconnect_kernel()
    assert ublk_kernel.log.count("STOP_DEV") == 1


def test_stop_that_has_waited_for_another_is_not_sent_to_a_device_that_is_gone(
    attachment: UblkAttachment, ublk_kernel: FakeUblk
) -> None:
    """The number may be another device's by then."""
    queue = attachment.open_queue()
    ublk_kernel.stuck = {"STOP_DEV"}
    first = run_in_daemon_thread(attachment.disconnect)
    ublk_kernel.when("STOP_DEV hangs").result()
    second = run_in_daemon_thread(attachment.disconnect_kernel)
    queue.close()
    ublk_kernel.free()
    first.result()
    second.result()
    assert ublk_kernel.log.count("STOP_DEV") == 1


def test_attachment_that_has_lost_its_queue_is_not_started(
    attachment: UblkAttachment, ublk_kernel: FakeUblk
) -> None:
    attachment.open_queue().close()
    with pytest.raises(OSError, match="it was stopped before it was live"):
        attachment.wait_until_live(30)
    assert "START_DEV" not in ublk_kernel.log


def test_ordinary_users_say_who_they_are(
    ublk_kernel: FakeUblk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attaching, "is_privileged", lambda: False)
    attachment = attach(None, MemoryDevice(1 << 20), RequestQueue())
    queue = attachment.open_queue()
    attachment.wait_until_live(30)  # without a scan, which this thread would have to answer
    attachment.disconnect()
    assert queue.take() == []
    assert queue.is_over
    queue.close()
    attachment.close()
    assert ublk_kernel.leaks() == []
