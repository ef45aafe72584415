"""A device, a socket pair and the kernel; and the order in which they part.

An unmount that loses nothing, each step while everything that later steps need still works:

1. claim the node exclusively, which a mounted file system refuses;
2. write back what the kernel caches, while requests are served;
3. NBD_DISCONNECT, while requests are served; the kernel answers with DISC;
4. let the requests in flight finish; then close our end of the socket;
5. NBD_DO_IT returns in its thread, which then clears the socket, so that nobody waits in vain;
6. close the node, and wait until its index is free;
7. the device's ``flush()``, then its ``unmount()``.

A disconnect by somebody else (``nbd-client -d``, another program's ioctl) enters at step 2, a lost
connection at step 4. Each wait ends when the kernel has been without an answer for too long, or
when somebody forces it; then the socket is closed first, since that is what frees everything that
hangs. No step is ever skipped but those that the one before made pointless.

Nothing in the event loop's thread touches the node: it could wait for a request that only this
loop can answer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent import futures
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

import anyio
from anyio.abc import TaskStatus

from . import kernel
from .device import BlockDevice, check_geometry
from .dispatch import MAX_CONCURRENCY, Dispatcher, Stats, transmission_flags
from .errors import AttachError, DeviceBusyError, Error

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("aiovblk")

ATTACH_TIMEOUT = 30.0
"""Seconds for attaching, and again for the first reads to be answered."""

UNMOUNT_TIMEOUT = 30.0
"""Seconds for which the kernel may be left without an answer during an unmount."""

KERNEL_TIMEOUT = 5.0
"""Seconds for steps that depend on the kernel alone and take it milliseconds."""

RELEASE_TIMEOUT = 0.5
"""Seconds to wait for others to close a device that is detached."""

SOCKET_BUFFER = 4 * 1024 * 1024
"""Bytes that each end may have under way; the default of 208 KiB makes large requests wait."""

_SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h; Python has no name for it


@asynccontextmanager
async def mounted(
    device: BlockDevice,
    path: str | os.PathLike[str] | None = None,
    *,
    concurrency: int = MAX_CONCURRENCY,
    handler_timeout: float | None = None,
    unmount_timeout: float = UNMOUNT_TIMEOUT,
) -> AsyncIterator[Mount]:
    """Mount ``device`` for the length of an ``async with`` block.

    Entering means that the device is live: it can be read, and its partitions are known. Leaving
    unmounts it, whatever the block did; an exception of the block comes out as it is.

    Args:
        device: what to serve.
        path: the node, ``/dev/nbdN``; None takes any device that is free.
        concurrency: how many handlers may run at once. The kernel sends at most 128 requests.
        handler_timeout: seconds after which a handler is cancelled and its request fails with EIO.
        unmount_timeout: seconds that one request may remain unanswered during the unmount before
            it is given up.

    Raises:
        NBDUnavailableError: there is no such device, no driver, or no free device.
        DeviceBusyError: somebody else serves ``path``. On leaving: something still used the
            device; its file systems were synced before it was unmounted by force.
        AttachError: the kernel refused the device. On leaving: its connection had been lost.
        Error: on leaving: data could not be stored, or a handler failed.
        TypeError, ValueError: the device's declarations, or an option, cannot be.

    Cancellation: unmounts in order, then goes on.

    """
    mount = Mount(
        device,
        concurrency=concurrency,
        handler_timeout=handler_timeout,
        unmount_timeout=unmount_timeout,
    )
    await mount._start(path)
    try:
        yield mount
    except BaseException:
        await mount._leave()
        mount._log_failure()
        raise
    try:
        await mount.unmount()
    except BaseException:
        await mount._leave()
        raise


async def mount(
    device: BlockDevice,
    path: str | os.PathLike[str] | None = None,
    *,
    concurrency: int = MAX_CONCURRENCY,
    handler_timeout: float | None = None,
    unmount_timeout: float = UNMOUNT_TIMEOUT,
    task_status: TaskStatus[Mount] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Mount ``device`` and serve it until it is unmounted, by whomever.

    To be awaited, or run as a task; with anyio, ``await group.start(aiovblk.mount, device)``
    returns the :class:`Mount` once the device is live.

    The arguments are those of :func:`mounted`, and so are the exceptions.

    Cancellation: unmounts in order, then re-raises. A file system that is still mounted on the
    device is synced before, and sees nothing but errors afterwards.
    """
    async with mounted(
        device,
        path,
        concurrency=concurrency,
        handler_timeout=handler_timeout,
        unmount_timeout=unmount_timeout,
    ) as live:
        task_status.started(live)
        await live.wait()


class Mount:
    """A mounted device, made by :func:`mount` and :func:`mounted`.

    Attributes:
        device: what is served.
        path: the device node, ``/dev/nbdN``.
        index: N.
        stats: counters, up to date at any time.

    """

    path: str
    index: int

    def __init__(
        self,
        device: BlockDevice,
        *,
        concurrency: int,
        handler_timeout: float | None,
        unmount_timeout: float,
    ) -> None:
        check_geometry(device)
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        for name, value in {
            "handler_timeout": handler_timeout,
            "unmount_timeout": unmount_timeout,
        }.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be a positive number of seconds, not {value}")
        self.device = device
        self.stats = Stats()
        self._loop = asyncio.get_running_loop()
        self._unmount_timeout = unmount_timeout
        self._claiming = asyncio.Lock()
        # Futures and not events, since no cancellation reaches whoever waits for them.
        self._live: asyncio.Future[None] = self._loop.create_future()
        self._stopping: asyncio.Future[None] = self._loop.create_future()
        self._forced: asyncio.Future[None] = self._loop.create_future()
        self._disconnected: asyncio.Future[None] = self._loop.create_future()
        self._link_ended: asyncio.Future[None] = self._loop.create_future()
        self._stream_ended: asyncio.Future[None] = self._loop.create_future()
        self._lost = False
        self._failures: list[str] = []
        self._dispatcher = Dispatcher(
            device,
            self.stats,
            concurrency=concurrency,
            handler_timeout=handler_timeout,
            on_disconnect=self._on_disconnect,
        )
        self._link: kernel.Link
        self._serving: asyncio.Task[None]
        self._life: asyncio.Task[None]

    def __repr__(self) -> str:
        """Name the device and its node."""
        return f"<Mount of {self.device!r} at {getattr(self, 'path', 'no node yet')}>"

    async def unmount(self, *, force: bool = False) -> None:
        """Unmount in order and wait until it is done; nothing that was written is lost.

        Takes milliseconds where nothing hangs. Where a handler does, it is given up when the
        kernel has waited ``unmount_timeout`` seconds for it. If the device is unmounted already,
        or is being unmounted, this only waits.

        Args:
            force: unmount although the device is in use. Its file systems are synced first, then
                see nothing but errors. While an unmount is under way: give up its waits at once;
                what was not written is lost.

        Raises:
            DeviceBusyError: something uses the device, and ``force`` is not set. It lives on.
            AttachError: the kernel's connection was lost.
            Error: it was unmounted, but data could not be stored, or its handlers failed.

        Cancellation: the unmount goes on.

        """
        if force and self._stopping.done():
            _set(self._forced)
        elif not force:
            await self._claim()
        _set(self._stopping)
        await self.wait()

    async def wait(self) -> None:
        """Wait until the device is unmounted, by whomever.

        Raises:
            AttachError: the kernel's connection was lost.
            Error: it was unmounted, but data could not be stored, or its handlers failed.

        Cancellation: the device stays mounted.

        """
        await asyncio.wait([self._life])
        self._life.result()

    async def resize(self, blocks: int) -> None:
        """Give the live device another size, and set its ``blocks``.

        A file system on it does not notice by itself (resize2fs, xfs_growfs). What the kernel has
        cached beyond a smaller size is written before.

        Args:
            blocks: the new number of blocks; ``block_size`` stays.

        Raises:
            ValueError: out of range.
            OSError: the kernel refused, or did not do it within ``unmount_timeout``: since Linux
                6.12 it waits for all requests in flight.

        """
        new_size = blocks * self.device.block_size
        if blocks < 1 or new_size > 2**63 - os.sysconf("SC_PAGE_SIZE"):
            raise ValueError(f"a device cannot have {blocks} blocks")
        if new_size > self._dispatcher.size:
            # The kernel may use what is new before its call returns.
            self.device.blocks, self._dispatcher.size = blocks, new_size
        else:
            await self._call(self._unmount_timeout, self._link.sync)
        await self._call(self._unmount_timeout, self._link.resize, blocks)
        self.device.blocks, self._dispatcher.size = blocks, new_size

    # One task leads the life of a mount. Nobody can cancel it; who tries asks it to unmount.

    async def _start(self, path: str | os.PathLike[str] | None) -> None:
        """Attach; returns when the device is live."""
        self._life = self._steady_task(self._lead_life(None if path is None else os.fspath(path)))
        try:
            await asyncio.shield(self._live)
        except asyncio.CancelledError:
            await self._leave()
            self._log_failure()
            raise

    async def _leave(self) -> None:
        """Unmount, used or not, and return when that is done, whatever is cancelled."""
        _set(self._stopping)
        cancelled = False
        with anyio.CancelScope(shield=True):
            while not self._life.done():
                try:
                    await asyncio.wait([self._life])
                except asyncio.CancelledError:
                    cancelled = True  # natively; anyio's scopes do not reach in here
        if cancelled:
            raise asyncio.CancelledError

    def _log_failure(self) -> None:
        """Log what went wrong in an unmount where another exception is on its way out."""
        if failure := self._life.exception():
            logger.error("%s: %s", self, failure)

    async def _lead_life(self, path: str | None) -> None:
        try:
            await self._attach(path)
        except BaseException as exc:
            self._live.set_exception(exc)
            self._live.exception()  # where nobody waits any more, nobody need be told
            return
        self._live.set_result(None)
        logger.info("mounted %r at %s", self.device, self.path)
        await self._stopping
        await self._detach()
        await self._call_last_handlers()
        logger.info("unmounted %s", self.path)
        if self._lost:
            reason = "; ".join([self._reason_of_loss(), *self._failures])
            raise AttachError(errno.ENOTCONN, reason, self.path)
        if self._failures:
            raise Error(f"{self.path} is unmounted, but " + "; ".join(self._failures))

    # Attaching

    async def _attach(self, path: str | None) -> None:
        ours, kernels = socket.socketpair()
        with kernels:
            _enlarge_buffers(ours, kernels)
            await self._dispatcher.connect(ours)
            try:
                self._link = await self._obtain_link(path, kernels)
            except BaseException:
                self._dispatcher.abort()
                raise
        self.path, self.index = self._link.path, self._link.index
        # Serve before NBD_DO_IT begins, since requests come at once.
        self._serving = self._steady_task(self._dispatcher.run())
        self._serving.add_done_callback(self._on_stream_end)
        self._link.start()
        self._link.ended.add_done_callback(_when_link_ends(self, self._link))
        try:
            await self._call(ATTACH_TIMEOUT, self._link.wait_until_live, ATTACH_TIMEOUT)
        except OSError as exc:
            _set(self._forced)
            await self._detach()
            await self._call_last_handlers()
            reason = f"the device was attached, but did not come alive: {exc.strerror}"
            raise AttachError(exc.errno or errno.EIO, reason, self.path) from exc

    async def _obtain_link(self, path: str | None, kernels: socket.socket) -> kernel.Link:
        device, sock, flags = self.device, kernels.fileno(), transmission_flags(self.device)
        block_size, blocks = device.block_size, device.blocks
        attaching = kernel.in_thread(
            kernel.attach, path, lambda link: link.configure(sock, block_size, blocks, flags)
        )
        try:
            return await self._within(ATTACH_TIMEOUT, attaching)
        except TimeoutError as exc:
            # Should it be opened after all, nobody serves it.
            attaching.add_done_callback(_close_link)
            raise AttachError(
                errno.ETIMEDOUT,
                "opening the device hangs: some program waits there for a server that is gone; "
                "`aiovblk unmount --force` frees it",
                path,
            ) from exc

    # Detaching

    async def _detach(self) -> None:
        begin = self._loop.time()
        try:
            if self._link_ended.done():
                # The stream may hold a DISC that has not been read yet.
                await self._patiently(begin, self._stream_ended)
            self._lost = self._stream_ended.done() and not self._disconnected.done()
            if not self._stream_ended.done():
                await self._write_back(begin)
            if not self._lost and not self._disconnected.done():
                await self._patiently(begin, self._started(self._link.disconnect))
                await self._patiently(begin, self._disconnected)
            await self._patiently(begin, self._dispatcher.drained())
            await self._patiently(begin, self._dispatcher.close())
        except _GivenUpError as exc:
            self._failures.append(str(exc))
            self._dispatcher.abort()
        await self._part_from_kernel()

    async def _write_back(self, begin: float) -> None:
        """Have the kernel send what it caches, while it still can."""
        from_outside = self._disconnected.done()
        try:
            await self._patiently(begin, self._started(self._link.sync))
        except OSError as exc:
            if from_outside:
                # A disconnect by ioctl leaves the connection open; one by netlink shuts it after
                # DISC, and then a sync fails whether there was anything to write or not.
                await asyncio.wait([self._stream_ended], timeout=RELEASE_TIMEOUT)
            if self._stream_ended.done():
                logger.warning(
                    "%s was disconnected from outside at once; what the kernel cached is lost",
                    self.path,
                )
            else:
                reason = f"the kernel could not write back all data: {exc.strerror}"
                self._failures.append(reason)

    async def _part_from_kernel(self) -> None:
        """Wait until the kernel has let go, our end of the socket being closed."""
        for rescue in (None, self._link.clear_socket, self._link.rescue):
            try:
                if rescue is not None:
                    logger.warning("%s: the kernel does not let go; %s", self.path, rescue)
                    await self._call(KERNEL_TIMEOUT, rescue)
                await self._within(KERNEL_TIMEOUT, self._link.ended)
                break
            except OSError as exc:
                logger.debug("%s: %s", self.path, exc)
        else:
            self._failures.append("the kernel does not let go of it; see its log")
            return
        await self._call(KERNEL_TIMEOUT, self._link.close)
        if not await self._call(KERNEL_TIMEOUT, self._link.wait_until_free, RELEASE_TIMEOUT):
            logger.warning(
                "%s is unmounted, but cannot be mounted again while it is open: %s",
                self.path,
                ", ".join(await self._call(KERNEL_TIMEOUT, kernel.sysfs.holders, self.index)),
            )

    async def _call_last_handlers(self) -> None:
        for handler in (self.device.flush, self.device.unmount):
            try:
                await self._run_handler(handler)
            except (Exception, _GivenUpError) as exc:
                logger.error("%s(): %r", handler.__qualname__, exc, exc_info=exc)
                self._failures.append(f"its {handler.__name__}() failed: {exc!r}")

    async def _run_handler(self, handler: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            task = self._loop.create_task(handler())
            try:
                return await self._patiently(self._loop.time(), task)
            except _GivenUpError:
                task.cancel()
                await asyncio.wait([task], timeout=KERNEL_TIMEOUT)
                raise
            except asyncio.CancelledError:
                # The end of the event loop cancels all tasks; this one has to be done all the same.
                continue

    # Waiting

    async def _patiently(self, begin: float, step: asyncio.Future[T]) -> T:
        """Wait for a step of the unmount for as long as the kernel gets its answers."""
        while not step.done():
            since = max(begin, self._dispatcher.waited_since())
            seconds = since + self._unmount_timeout - self._loop.time()
            if self._forced.done():
                raise _GivenUpError("it was forced; what was not written yet is lost")
            if seconds <= 0:
                raise _GivenUpError(f"no handler returned for {self._unmount_timeout} s")
            both: list[asyncio.Future[Any]] = [step, self._forced]
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return step.result()

    async def _call(
        self, seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a blocking function in a thread; after ``seconds`` it is left to itself."""
        return await self._within(seconds, kernel.in_thread(function, *args, **kwargs))

    def _started(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Any:
        """Start a blocking function in a thread; a future of its result."""
        return asyncio.wrap_future(kernel.in_thread(function, *args, **kwargs))

    async def _within(self, seconds: float, step: futures.Future[T]) -> T:
        future = asyncio.wrap_future(step)
        await asyncio.wait([future], timeout=seconds)
        if not future.done():
            # Its result, should there be one, is of no use any more.
            future.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise TimeoutError(errno.ETIMEDOUT, f"the kernel did not answer in {seconds} s")
        return future.result()

    async def _claim(self) -> None:
        async with self._claiming:
            if self._stopping.done():
                return
            try:
                await self._call(self._unmount_timeout, self._link.claim)
            except TimeoutError:
                # A program's open() hangs, since a handler does, and ours behind it.
                points = await self._call(KERNEL_TIMEOUT, kernel.sysfs.mount_points, self.index)
                if points:
                    raise DeviceBusyError(
                        errno.EBUSY,
                        f"the device is mounted at {', '.join(points)}",
                        self.path,
                        [f"mounted at {point}" for point in points],
                    ) from None

    # What happens outside of the task

    def _on_disconnect(self) -> None:
        _set(self._disconnected)
        _set(self._stopping)

    def _on_stream_end(self, serving: asyncio.Task[None]) -> None:
        _set(self._stream_ended)
        _set(self._stopping)

    def _on_link_end(self) -> None:
        _set(self._link_ended)
        _set(self._stopping)

    def _reason_of_loss(self) -> str:
        broken = self._serving.exception()
        number = self._link.ended.result() if self._link.ended.done() else 0
        if broken is not None:
            why = f"the connection broke: {broken}"
        elif number in (errno.EBUSY, errno.EINTR):
            why = "its thread was stopped (Ctrl-Z, a debugger, a frozen container or a suspend do)"
        else:
            why = "somebody took its socket away"
        return f"the kernel's connection was lost, and what it had not written: {why}"

    def _steady_task(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return _SteadyTask(coroutine, self._loop, lambda: _set(self._stopping))


class _SteadyTask(asyncio.Task[T]):
    """A task that takes its cancellation for the order to unmount.

    The end of an event loop cancels every task there is. The tasks that serve must go on until
    the kernel has let go, or it would wait for answers that nobody gives.
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T],
        loop: asyncio.AbstractEventLoop,
        instead_of_cancel: Callable[[], None],
    ) -> None:
        super().__init__(coroutine, loop=loop)
        self._instead_of_cancel = instead_of_cancel

    def cancel(self, msg: Any = None) -> bool:
        self._instead_of_cancel()
        return False


class _GivenUpError(Exception):
    """A wait has been ended by its deadline, or by force."""


def _set(event: asyncio.Future[None]) -> None:
    if not event.done():
        event.set_result(None)


def _enlarge_buffers(*ends: socket.socket) -> None:
    for end in ends:
        try:
            # Beyond net.core.wmem_max, which takes CAP_NET_ADMIN.
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SOCKET_BUFFER)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)


def _when_link_ends(mount: Mount, link: kernel.Link) -> Callable[[futures.Future[int]], None]:
    """What the thread does that comes back from NBD_DO_IT.

    It holds the mount weakly: when an event loop was dropped with all that ran on it, the sockets
    go with it, the kernel ends NBD_DO_IT, and this thread is all that is left to clean up.
    """
    mount_reference = weakref.ref(mount)

    def ended(_: futures.Future[int]) -> None:
        live = mount_reference()
        try:
            if live is not None:
                live._loop.call_soon_threadsafe(live._on_link_end)
                return
        except RuntimeError:  # the loop is closed
            pass
        link.close()
        link.wait_until_free(0)

    return ended


def _close_link(attaching: futures.Future[kernel.Link]) -> None:
    if attaching.exception() is None:
        attaching.result().close()
