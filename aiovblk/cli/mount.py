"""``aiovblk mount``: serve a device until a signal, or an unmount from elsewhere."""

from __future__ import annotations

import asyncio
import signal
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from ..device import BlockDevice, Factory
from ..errors import DeviceBusyError
from ..kernel import RequestQueue
from ..mount import Mount, mounted
from ..mount.waiting import begin
from .layers import Layers, stack_of
from .notify import Notifier
from .orphan import is_running, spawn_orphan
from .running import telling_of_slow_requests, until_signal
from .spec import device_for_worker


async def mount_until_signal(arguments: Namespace) -> None:
    """Serve ``arguments.spec`` to the kernel; returns once it is unmounted."""
    unmounts: set[asyncio.Task[None]] = set()

    def end(mount: Mount, force: bool) -> None:
        # Not awaited, so that the next signal is heard.
        unmounts.add(asyncio.create_task(_unmount(mount, force=force)))

    await until_signal(partial(_serve, arguments), end)


async def _serve(arguments: Namespace, live: asyncio.Future[Mount]) -> None:
    async with (
        _served(arguments) as device,
        mounted(
            device,
            arguments.path,
            attach=arguments.attach,
            connections=arguments.connections,
            workers=arguments.workers,
            concurrency=arguments.concurrency,
            handler_timeout=arguments.handler_timeout,
            slow_request=arguments.slow_request,
            timeout=arguments.timeout,
            unmount_timeout=arguments.unmount_timeout,
            queue=RequestQueue(
                max_sectors_kb=arguments.max_sectors_kb,
                read_ahead_kb=arguments.read_ahead_kb,
                scheduler=arguments.scheduler,
            ),
            identity=arguments.identity,
            survive=arguments.survive,
            replace=arguments.replace,
            partitions=arguments.partitions,
            memory_safe=arguments.memory_safe,
        ) as mount,
    ):
        live.set_result(mount)
        upgrade = Upgrade(arguments.words, mount, Notifier())
        print(f"mounted {mount.path}", flush=True)
        with telling_of_slow_requests(mount.events()):
            await mount.wait()
        upgrade.end()


class Upgrade:
    """At SIGUSR2, this command is started again, and handed the device.

    Args:
        words: what this command was called with.
        mount: the device.
        notifier: tells systemd which process is the service.

    """

    def __init__(self, words: list[str], mount: Mount, notifier: Notifier) -> None:
        self._words = words
        self._mount = mount
        self._notifier = notifier
        self._starting: asyncio.Future[int] | None = None
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, self._begin)
        notifier.ready(f"serving {mount.path}")

    def end(self) -> None:
        """The device is unmounted, or handed over."""
        if (successor := self._successor()) is not None:
            self._notifier.replaced(successor)

    def _begin(self) -> None:
        if self._mount.identity is None:
            reason = "SIGUSR2: there is no --identity by which a successor could find the device"
            print(f"aiovblk: {reason}", file=sys.stderr, flush=True)
            return
        successor = self._successor()
        if self._starting is not None and not self._starting.done():
            return
        if successor is not None and is_running(successor):
            return  # it is still at it
        replace = [] if "--replace" in self._words else ["--replace"]
        command = [sys.executable, "-m", "aiovblk", *self._words, *replace]
        # In a thread: requests go on being served meanwhile.
        self._starting = begin(spawn_orphan, command, self._notifier.environment)

    def _successor(self) -> int | None:
        """The process that was started last, if it could be."""
        starting = self._starting
        if starting is None or not starting.done() or starting.exception() is not None:
            return None
        return starting.result()


@asynccontextmanager
async def _served(arguments: Namespace) -> AsyncIterator[BlockDevice | Factory]:
    layers = Layers.of(arguments)
    if arguments.workers is not None:
        yield partial(device_for_worker, arguments.spec, read_only=arguments.read_only)
        return
    async with AsyncExitStack() as stack:

        async def make() -> BlockDevice:
            device = stack_of(arguments.spec, layers, read_only=arguments.read_only)
            return await stack.enter_async_context(device)

        # Not before the other server has let go of it: a file is locked.
        yield make if arguments.replace else await make()


async def _unmount(mount: Mount, *, force: bool) -> None:
    try:
        await mount.unmount(force=force)
    except DeviceBusyError as exc:
        print(f"aiovblk: {exc}; still serving, again to force", file=sys.stderr, flush=True)
    except Exception:
        pass  # whoever waits for the mount raises it
