"""What a mount serves, and where its handlers run."""

from __future__ import annotations

from typing import Protocol

from ..contract import check_device
from ..device import BlockDevice, DeviceFactory, make_device
from ..dispatch import (
    ConcurrencyLimiter,
    Dispatcher,
    FailureLog,
    Reporter,
    Stats,
    transmission_flags,
)
from .connections import ConnectionGroup, KernelConnection


class Backend(Protocol):
    """A device, and the lines that lead to its handlers.

    Attributes:
        device: what is served, or what stands for it in this process.

    """

    device: BlockDevice

    @property
    def opens_after_handover(self) -> bool:
        """Whether :meth:`open` is not to be called before another server has let go."""

    @property
    def flags(self) -> int:
        """What the kernel is told: the specification's transmission flags."""

    async def open(self, lines: ConnectionGroup) -> None:
        """Add a line for each connection."""

    async def open_replacement(self, old: KernelConnection | None, new: KernelConnection) -> None:
        """Have a line ready that was added after :meth:`open`.

        Args:
            old: in whose place it serves, which has ended; None for one more.
            new: the line.

        """

    def set_path(self, path: str) -> None:
        """Be told which node the device has, for the log."""

    async def close(self) -> None:
        """Let go of what :meth:`open` has taken."""


class LocalBackend:
    """A device of this process, by one connection or several."""

    def __init__(
        self,
        device: object,
        *,
        connections: int,
        concurrency: int,
        handler_timeout: float | None,
        slow_request: float | None,
    ) -> None:
        self.device = check_device(device)
        self.opens_after_handover = False
        self._connections = connections
        self._limiter = ConcurrencyLimiter(concurrency)
        self._handler_timeout = handler_timeout
        self._slow_request = slow_request
        self._failures = FailureLog()
        self._path = ""
        self._reporter = Reporter(self._failures, self.device)

    @property
    def flags(self) -> int:
        """What the kernel is told."""
        return transmission_flags(self.device, multi_conn=self._connections > 1)

    async def open(self, lines: ConnectionGroup) -> None:
        """Add a dispatcher for each connection; they count their handlers together."""
        self._reporter = Reporter(self._failures, self.device, self._path)
        for _ in range(self._connections):
            lines.add(
                lambda on_disconnect: Dispatcher(
                    self.device,
                    Stats(),
                    limiter=self._limiter,
                    handler_timeout=self._handler_timeout,
                    slow_request=self._slow_request,
                    reporter=self._reporter,
                    on_event=lines.publish,
                    on_disconnect=on_disconnect,
                )
            )

    async def open_replacement(self, old: KernelConnection | None, new: KernelConnection) -> None:
        """It is."""

    def set_path(self, path: str) -> None:
        """Be told which node the device has, for the log."""
        self._path = path
        self._reporter.where = path

    async def close(self) -> None:
        """Tell what was not told yet. The device is its user's."""
        self._failures.close()


class DeferredBackend(LocalBackend):
    """A device of this process that is made when another server has let go of it.

    Args:
        factory: makes it.

    """

    def __init__(
        self,
        factory: DeviceFactory,
        *,
        connections: int,
        concurrency: int,
        handler_timeout: float | None,
        slow_request: float | None,
    ) -> None:
        super().__init__(
            _Placeholder(),
            connections=connections,
            concurrency=concurrency,
            handler_timeout=handler_timeout,
            slow_request=slow_request,
        )
        self.opens_after_handover = True
        self._factory = factory

    async def open(self, lines: ConnectionGroup) -> None:
        """Make the device, and add a dispatcher for each connection."""
        self.device = check_device(await make_device(self._factory))
        await super().open(lines)


class _Placeholder(BlockDevice):
    """Stands for a device until that is made."""

    blocks = 1
