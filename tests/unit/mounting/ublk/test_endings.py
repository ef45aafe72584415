"""A mount whose event loop, or whose thread, is gone: the queue is closed, the device deleted."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Callable

import pytest
import uvloop

from aiovblk import Mount

from ....support.fake_ublk import PAGE, FakeUblk, Op
from ....support.noting_disk import LAST, Disk
from ....support.ublk_disk import begin, check_end

pytestmark = pytest.mark.slow

loops = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


def check_deleted(kernel: FakeUblk) -> None:
    assert kernel.leaks() == [], kernel.leaks()
    assert kernel.log[-3:] == ["the queue is closed", "DEL_DEV_ASYNC", "free"]


@loops
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_dropped_loop(
    ublk_kernel: FakeUblk, new_loop: NewLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of coroutines that would have had to wait for something.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)

    def serve() -> None:
        loop = new_loop()
        loop.run_until_complete(begin(ublk_kernel, Disk(ublk_kernel)))
        loop.close()

    serve()
    gc.collect()
    check_deleted(ublk_kernel)


@loops
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_thread_that_ends_while_its_loop_is_kept(ublk_kernel: FakeUblk, new_loop: NewLoop) -> None:
    loop = new_loop()
    found: list[tuple[asyncio.Task[None], Mount]] = []

    def serve() -> None:
        found.append(loop.run_until_complete(begin(ublk_kernel, Disk(ublk_kernel))))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    check_deleted(ublk_kernel)
    # The loop may be run again, by another thread: the mount ends then.
    ((task, mount),) = found
    with pytest.raises(Exception, match="lost"):
        loop.run_until_complete(mount.wait())
    with pytest.raises(Exception, match="lost"):
        loop.run_until_complete(task)
    loop.close()
    assert ublk_kernel.log[-2:] == LAST
    assert ublk_kernel.log.count("DEL_DEV_ASYNC") == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_forked_child_leaves_the_device_to_its_parent(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    task, mount = await begin(ublk_kernel, ublk_disk)

    def fork() -> int:
        """In another thread: the child forgets that of the event loop."""
        child = os.fork()
        if child == 0:
            log = list(ublk_kernel.log)
            gc.collect()
            os._exit(0 if ublk_kernel.log == log else 1)
        return os.waitpid(child, 0)[1]

    assert await asyncio.to_thread(fork) == 0
    assert await asyncio.wrap_future(ublk_kernel.send(Op.READ, 0, PAGE)) == bytes(PAGE)
    await mount.unmount()
    await task
    check_end(ublk_kernel)
