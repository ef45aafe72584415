"""What a mount serves, and where its handlers run: in this process, or in workers.

A mount knows its device by a :class:`Backend` only. The ordinary one is :class:`LocalBackend`;
worker processes are the room ``workers/``, entered in :func:`make_backend`.
"""

from __future__ import annotations

from typing import Protocol

from ..contract import check_device
from ..device import BlockDevice, DeviceFactory, make_device
from ..dispatch import (
    ConcurrencyLimiter,
    Dispatcher,
    FailureLog,
    HandlerLimits,
    Reporter,
    Stats,
    transmission_flags,
)
from .connections import ConnectionGroup, KernelConnection
from .options import MountOptions
from .ublk.dispatcher import UblkDispatcher
from .workers.backend import WorkerBackend


class Backend(Protocol):
    """A device, and the connections that lead to its handlers.

    Attributes:
        device: the device that is served, or its stand-in in this process.

    """

    device: BlockDevice

    @property
    def opens_after_handover(self) -> bool:
        """Whether :meth:`open` must not be called before another server has handed over."""

    @property
    def flags(self) -> int:
        """The transmission flags of the NBD specification, as the kernel is given them."""

    async def open(self, connections: ConnectionGroup) -> None:
        """Open the device, and add what serves each connection to ``connections``."""

    async def open_replacement(self, old: KernelConnection | None, new: KernelConnection) -> None:
        """Prepare a connection that was added after :meth:`open`.

        Args:
            old: the connection that it replaces, which has ended; None if it is one more.
            new: the connection.

        """

    def set_path(self, path: str) -> None:
        """Set the device node that the log names."""

    async def close(self) -> None:
        """Release what :meth:`open` has taken."""


def make_backend(device: BlockDevice | DeviceFactory, options: MountOptions) -> Backend:
    """Choose where the handlers run: in worker processes, or in this process.

    Raises:
        TypeError: with ``workers``, ``device`` is no factory; else, it is no device.
        ValueError: the device's declarations cannot be.

    """
    limits, replace = options.limits, options.handover.replace
    if options.workers is not None:
        if isinstance(device, BlockDevice) or not callable(device):
            raise TypeError(
                f"workers make devices of their own: with workers={options.workers}, give what"
                f" makes one (a class, a function, a functools.partial), not {device!r}"
            )
        return WorkerBackend(
            device,
            workers=options.workers,
            limits=limits,
            memory_safe=options.memory_safe,
            opens_after_handover=replace,
        )
    factory = device if replace and callable(device) else None
    return LocalBackend(
        device,
        connections=options.connections,
        limits=limits,
        factory=factory,
        dispatcher=UblkDispatcher if options.attach == "ublk" else Dispatcher,
    )


class LocalBackend:
    """A device of this process, served on one connection or several.

    Args:
        device: what is served.
        connections: how many.
        limits: of its handlers, on all connections together.
        factory: makes the device once another server has handed over; None if it is there.
        dispatcher: what serves a connection.

    """

    def __init__(
        self,
        device: object,
        *,
        connections: int,
        limits: HandlerLimits,
        factory: DeviceFactory | None = None,
        dispatcher: type[Dispatcher] | type[UblkDispatcher] = Dispatcher,
    ) -> None:
        self._dispatcher = dispatcher
        self.device = check_device(device) if factory is None else BlockDevice()
        self.opens_after_handover = factory is not None
        self._factory = factory
        self._count = connections
        self._limits = limits
        self._limiter = ConcurrencyLimiter(limits.concurrency)
        self._failures = FailureLog()
        self._path = ""
        self._reporter = Reporter(self._failures, self.device)

    @property
    def flags(self) -> int:
        """The transmission flags."""
        return transmission_flags(self.device, multi_conn=self._count > 1)

    async def open(self, connections: ConnectionGroup) -> None:
        """Make the device, if it is not there; add a dispatcher for each connection."""
        if self._factory is not None:
            self.device = check_device(await make_device(self._factory))
        self._reporter = Reporter(self._failures, self.device, self._path)
        for _ in range(self._count):
            connections.add(
                lambda on_disconnect: self._dispatcher(
                    self.device,
                    Stats(),
                    limiter=self._limiter,
                    handler_timeout=self._limits.handler_timeout,
                    slow_request=self._limits.slow_request,
                    busy_poll=self._limits.busy_poll,
                    reporter=self._reporter,
                    on_event=connections.publish,
                    on_disconnect=on_disconnect,
                )
            )

    async def open_replacement(self, old: KernelConnection | None, new: KernelConnection) -> None:
        """No-op: a dispatcher is ready once it is made."""

    def set_path(self, path: str) -> None:
        """Set the device node that the log names."""
        self._path = path
        self._reporter.where = path

    async def close(self) -> None:
        """Log the failures that were not logged yet. The device itself belongs to its user."""
        self._failures.close()
