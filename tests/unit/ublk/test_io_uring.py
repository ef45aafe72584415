"""The ring, on the kernel's own io_uring where that is allowed, and on a fake one."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
import threading
from collections.abc import Iterator

import pytest

from aiovblk import atfork
from aiovblk.threads import run_in_daemon_thread
from aiovblk.ublk import io_uring
from aiovblk.ublk.io_uring import SQE_SIZE, Ring

from ...support.fake_io_uring import FIRST, FakeIoUring, KernelRing

refused = io_uring.refusal()
takes_io_uring = pytest.mark.skipif(
    refused is not None, reason=f"the kernel refuses io_uring: {refused}"
)

NOP, TIMEOUT = 0, 11  # IORING_OP_NOP, IORING_OP_TIMEOUT


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = Ring(4)
    yield made
    made.close()


def push(ring: Ring, slot: int, opcode: int = NOP) -> None:
    ring.prepare(slot, 0, -1, b"")
    ring.slots.view()[slot * SQE_SIZE] = opcode
    ring.push([slot])


def taken(ring: Ring) -> list[tuple[int, int]]:
    done, others = ring.take()
    return [*((slot, 0) for slot in done), *others]


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@takes_io_uring
def test_commands_are_completed_and_the_descriptor_says_so(ring: Ring) -> None:
    assert ring.entries == 4
    assert taken(ring) == []
    assert not is_readable(ring.fd)
    push(ring, 2)
    push(ring, 0)
    assert ring.unsubmitted == 2
    assert not ring.has_completions
    ring.submit()
    assert ring.unsubmitted == 0
    assert ring.has_completions
    assert is_readable(ring.fd)
    assert taken(ring) == [(2, 0), (0, 0)]
    assert not ring.has_completions
    assert not is_readable(ring.fd)


@takes_io_uring
def test_slots_are_used_again_for_longer_than_the_rings_are(ring: Ring) -> None:
    for number in range(100):
        push(ring, number % 4)
        push(ring, (number + 1) % 4)
        ring.submit()
        assert taken(ring) == [(number % 4, 0), ((number + 1) % 4, 0)]


@takes_io_uring
def test_command_for_a_file_that_takes_none_is_refused(ring: Ring) -> None:
    pipe = os.pipe()
    ring.prepare(1, 0x12345678, pipe[0], b"payload")
    ring.push([1])
    ring.submit()
    assert taken(ring) == [(1, -errno.EOPNOTSUPP)]
    for fd in pipe:
        os.close(fd)


@takes_io_uring
def test_wait_ends_after_its_timeout(ring: Ring) -> None:
    for seconds in (0, -1, 0.001):
        ring.wait(seconds)
        assert taken(ring) == []


@takes_io_uring
def test_wait_submits_and_blocks_until_there_is_a_completion(ring: Ring) -> None:
    moment = ctypes.create_string_buffer(struct.pack("<qq", 0, 20_000_000))
    ring.prepare(3, 0, -1, b"")
    slot = ring.slots.view()[3 * SQE_SIZE :]
    struct.pack_into("<B", slot, 0, TIMEOUT)
    struct.pack_into("<QQI", slot, 8, 0, ctypes.addressof(moment), 1)
    ring.push([3])
    del slot
    ring.wait(3600)
    assert taken(ring) == [(3, -errno.ETIME)]


@takes_io_uring
def test_wait_returns_at_once_if_there_is_a_completion(ring: Ring) -> None:
    push(ring, 0)
    ring.submit()
    ring.wait(3600)
    push(ring, 1)
    ring.wait(3600)
    assert taken(ring) == [(0, 0), (1, 0)]


@takes_io_uring
def test_another_thread_may_not_use_it(ring: Ring) -> None:
    push(ring, 0)
    with pytest.raises(OSError, match="io_uring_enter: File exists") as caught:
        run_in_daemon_thread(ring.submit).result()
    assert caught.value.errno == errno.EEXIST
    ring.submit()
    assert taken(ring) == [(0, 0)]


@takes_io_uring
def test_close_gives_descriptor_and_memory_back_once() -> None:
    before = os.listdir("/proc/self/fd")
    ring = Ring(2)
    assert atfork.are_protected([ring.fd])
    fd = ring.fd
    ring.close()
    assert os.listdir("/proc/self/fd") == before
    other = os.open(os.devnull, os.O_RDONLY)
    assert other == fd  # the number is another file's now
    ring.close()
    os.fstat(other)
    for use in (ring.submit, lambda: ring.wait(0)):
        with pytest.raises(OSError, match="closed") as caught:
            use()
        assert caught.value.errno == errno.EBADF
    os.close(other)


@takes_io_uring
def test_another_thread_may_close_it() -> None:
    ring = Ring(2)
    run_in_daemon_thread(ring.close).result()
    assert ring.fd == -1


# A fake kernel


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeIoUring:
    """A kernel that completes each command at once, with the negative number of its slot."""
    made = FakeIoUring(lambda ring, fd, op, data, _: ring.post(data, -data), lambda ring: None)
    made.install(monkeypatch)
    real = atfork.close_protected

    def close(fd: int) -> None:
        made.closed(fd)
        real(fd)

    monkeypatch.setattr(atfork, "close_protected", close)
    return made


def test_indices_wrap_around_at_32_bits(fake: FakeIoUring) -> None:
    ring = Ring(4)
    # As after so many submissions, which would take hours.
    ring._tail = ring._submitted = fake.rings[ring.fd]._submitted = (1 << 32) - 6
    assert FIRST + 100 > 1 << 32
    for number in range(50):
        ring.prepare(number % 4, 1, 0, b"")
        ring.push([number % 4])
        ring.prepare((number + 1) % 4, 1, 0, b"")
        ring.push([(number + 1) % 4])
        ring.submit()
        assert ring.unsubmitted == 0
        assert sorted(taken(ring)) == sorted(
            (each % 4, -(each % 4)) for each in (number, number + 1)
        )
    ring.close()


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN, errno.EBUSY])
def test_what_cannot_be_submitted_just_now_stays_pushed(fake: FakeIoUring, number: int) -> None:
    ring = Ring(4)
    for slot in range(3):
        ring.prepare(slot, 1, 0, b"")
        ring.push([slot])
    fake.rings[ring.fd].errors.append(number)
    ring.submit()
    assert ring.unsubmitted == 3
    fake.rings[ring.fd].takes = 1
    ring.submit()
    assert ring.unsubmitted == 2
    ring.submit()
    assert taken(ring) == [(0, 0), (1, -1), (2, -2)]
    ring.close()


@pytest.mark.parametrize("call", ["submit", "wait"])
def test_other_errors_are_raised(fake: FakeIoUring, call: str) -> None:
    ring = Ring(4)
    errors = fake.rings[ring.fd].errors
    errors.append(errno.EINVAL)
    with pytest.raises(OSError, match="io_uring_enter: Invalid argument"):
        ring.submit() if call == "submit" else ring.wait(1)
    errors.append(errno.EINTR)  # of the part that submits
    errors.append(errno.EINTR)
    ring.wait(1)
    errors.append(errno.EINTR)
    errors.append(errno.EINVAL)
    with pytest.raises(OSError, match="io_uring_enter: Invalid argument"):
        ring.wait(1)
    ring.close()


@pytest.mark.parametrize("nth", [0, 1])
@pytest.mark.parametrize("call", ["mmap", "madvise"])
def test_ring_that_cannot_be_mapped_leaves_nothing(fake: FakeIoUring, nth: int, call: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    fake.errors[call] = [0] * nth + [errno.ENOMEM]
    with pytest.raises(OSError, match=f"{call}: Cannot allocate memory"):
        Ring(4)
    assert (fake.rings, fake.mapped) == ({}, {})
    assert set(os.listdir("/proc/self/fd")) == before


def test_refusal_says_why(fake: FakeIoUring) -> None:
    assert io_uring.refusal() is None
    fake.errors["io_uring_setup"] = [errno.ENOSYS]
    refusal = io_uring.refusal()
    assert refusal is not None
    assert (refusal.errno, str(refusal)) == (
        errno.ENOSYS,
        "[Errno 38] io_uring_setup: Function not implemented",
    )
    assert fake.rings == {}


def test_wait_sees_the_completion_of_another_thread(fake: FakeIoUring) -> None:
    ring = Ring(2)
    kernel = fake.rings[ring.fd]
    timer = threading.Timer(0.02, kernel.post, (1, 5))
    timer.start()
    ring.wait(60)
    assert taken(ring) == [(1, 5)]
    timer.join()
    ring.close()


def test_wait_submits_again_what_the_kernel_had_no_memory_for(
    fake: FakeIoUring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it waits for the end of a command that has not begun: a STOP_DEV, for a day."""
    waits: list[float] = []

    def wait(kernel: KernelRing, seconds: float) -> bool:
        waits.append(seconds)
        return not kernel._is_empty()

    monkeypatch.setattr(KernelRing, "wait", wait)
    ring = Ring(2)
    fake.rings[ring.fd].errors.append(errno.EAGAIN)
    ring.prepare(1, 1, 0, b"")
    ring.push([1])
    while not ring.has_completions:
        ring.wait(24 * 3600)
    assert taken(ring) == [(1, -1)]
    assert max(waits) < 1
    ring.close()
