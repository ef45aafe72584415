"""The interface of a block device: its handlers, its geometry, and what it can do.

What holds here:

* :func:`can` is the only place that answers which operations a device supports. Transmission flags,
  request handling and layers ask it; nothing declares an ability a second time.
* A device that depends on another one (a layer, a remote export) names what it cannot do in
  ``_unsupported``; it never replaces its own methods.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

_ZEROES = memoryview(bytes(1024 * 1024))

Operation = Literal["read", "write", "flush", "trim", "write_zeroes", "extents", "cache"]
"""A capability of a device: the name of the handler that serves it."""

OPERATIONS: frozenset[Operation] = frozenset(get_args(Operation))


class Extent(NamedTuple):
    """A range of bytes with one allocation status, as :meth:`BlockDevice.extents` returns it.

    The two flags are those of the specification's ``base:allocation`` metadata context.
    """

    length: int
    """Bytes; at least 1."""
    hole: bool = False
    """No space is allocated for the range (NBD_STATE_HOLE)."""
    zero: bool = False
    """The range reads as zeroes (NBD_STATE_ZERO)."""


class BlockDevice:
    """A virtual disk: subclass it and override a coroutine for each operation it supports.

    What a subclass declares, as class attributes, instance attributes or properties:

    * :attr:`block_size`: bytes; a power of two. The kernel takes 512 to the page size (4096 on most
      machines), the network 1 to 64 KiB.
    * :attr:`blocks`: how many of them. The device has ``block_size * blocks`` bytes.
    * :attr:`rotational`: true for a medium on which seeking costs time.
    * :attr:`read_only`: follows from :meth:`write`; see there.
    * :attr:`multi_conn`: whether several instances, in several processes, may serve one disk.

    The overridden handlers are the device's capabilities (:func:`can`): the transmission flags of
    the NBD specification are derived from them, never declared a second time.

    **Arguments.** ``offset`` and ``length`` are bytes, multiples of ``block_size``, and lie inside
    the device; ``length`` is at least one block. A request that breaks this never reaches a
    handler. :meth:`read` and :meth:`write` get at most 32 MiB, the others up to 4 GiB from the
    kernel and up to the whole device from the network.

    **Errors.** Raise ``OSError(errno.EIO, "why")`` to fail one request. Any other exception counts
    as a bug, and the request fails with EIO; except those that report an outage:
    :data:`aiovblk.errors.OUTAGES` and :attr:`outages`. The device stays usable in all cases. (The
    kernel's driver reports EIO to programs whatever the error is.) Each new cause is logged in one
    line with device, request and reason, a bug with its traceback. When the same cause occurs again
    it is counted, and the count is logged at growing intervals. KeyboardInterrupt and SystemExit
    fail the request and are raised again.

    **Concurrency.** Handlers run concurrently, up to the ``concurrency`` limit given to
    :func:`aiovblk.mount`, and finish in any order. Writes of neighbouring blocks are often in
    flight together, and a program that writes the same block twice without waiting gets what it
    asked for. A device that stores data in units larger than ``block_size`` must serialize its own
    read-modify-write cycles, or be mounted with ``concurrency=1``, which runs one handler at a
    time. A handler must not block the event loop: nothing is served meanwhile. Each runs in an
    asyncio task with the context variables of the code that mounted the device; handlers that never
    wait may follow each other in one task.

    **Durability.** :meth:`flush` covers every write whose handler had returned before it began.
    A write that must be durable by itself (FUA) is a call of :meth:`write`, then one of
    :meth:`flush`.

    **Cancellation.** A handler is cancelled when ``handler_timeout`` has passed, and when the
    device is detached by force. It is not cancelled by a regular unmount, nor when the event loop
    is shut down: a handler that is cancelled from outside is run again, because the kernel still
    waits for its reply. So a handler must tolerate being run twice. One that is cancelled again and
    again, as if it cancelled its own task, fails.
    """

    # Declared as Any: a type checker lets a subclass override nothing else by a class attribute, an
    # attribute of its instances, and a property without a setter alike. The values are checked when
    # the device is mounted or served (``contract.py``).
    block_size: Any = 4096
    blocks: Any = 0
    rotational: Any = False
    multi_conn: Any = False
    """Whether instances that are made in the same way, each in a process of its own, are one disk:
    what one has written the others read, and a flush of one covers the writes that the others have
    completed (the promise of NBD_FLAG_CAN_MULTI_CONN). So no instance may cache data privately."""

    outages: tuple[type[BaseException], ...] = ()
    """Exceptions that mean an outage of what the device depends on, beside OSError and those of
    :data:`aiovblk.errors.OUTAGES`: they are logged in one line, not as bugs with a traceback."""

    _read_only: bool | None = None

    _unsupported: frozenset[Operation] = frozenset()
    """Operations that :func:`can` denies although their handlers are overridden: what a layer's
    inner device, or a server, lacks. Set once, by the constructor."""

    if TYPE_CHECKING:
        read_only: Any
        """Whether writes are refused: READ_ONLY is advertised."""
    else:

        @property
        def read_only(self) -> bool:
            """Whether the kernel refuses writes: by default, when :meth:`write` is not overridden.

            ``read_only = False`` in a class without :meth:`write` lets writes reach it and fail;
            ``read_only = True`` keeps them away from a class that has it.
            """
            if self._read_only is not None:
                return self._read_only
            return not can(self, "write")

        @read_only.setter
        def read_only(self, value: bool) -> None:
            self._read_only = value

    @property
    def size(self) -> int:
        """Total size in bytes."""
        size: int = self.block_size * self.blocks
        return size

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Return the ``length`` bytes at ``offset``.

        Returns:
            Exactly ``length`` bytes, as any contiguous bytes-like object. ``bytes`` and read-only
            memoryviews are sent without copying and must not change any more; others are copied
            before the handler's reply is queued. A wrong length is logged as a bug and fails the
            request with EIO.

        """
        raise PermissionError(errno.EPERM, "this device cannot be read")

    async def write(self, offset: int, data: memoryview) -> None:
        """Store ``data`` at ``offset``.

        Args:
            offset: bytes.
            data: the payload, valid until this call returns; copy what must outlive it.

        """
        raise PermissionError(errno.EPERM, "this device cannot be written")

    async def flush(self) -> None:
        """Make every write whose handler has returned durable.

        After a failure it must not succeed before those writes are durable: a caller that flushes
        again relies on that. (fsync() breaks this rule: it succeeds the second time although the
        kernel has dropped the pages.)

        When it is not overridden, writes are announced as durable when they return. It is called
        once more when the device is unmounted.
        """

    async def trim(self, offset: int, length: int) -> None:
        """Discard these bytes: a hint that they are not needed; they may read back as anything."""

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Make these bytes read back as zeroes.

        When it is not overridden, zeroes go to :meth:`write` in pieces of at most 1 MiB. (Linux
        6.12 sends this command even to devices that do not advertise it.)

        Args:
            offset: bytes.
            length: bytes, up to 4 GiB: far too many to allocate.
            may_trim: false if the space must stay allocated (NBD_CMD_FLAG_NO_HOLE).

        """
        end = offset + length
        while offset < end:
            piece = min(end - offset, len(_ZEROES))
            await self.write(offset, _ZEROES[:piece])
            offset += piece
            if offset < end:
                await asyncio.sleep(0)  # let other tasks run: it may be terabytes

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return the allocation status: which parts are holes, and which read as zeroes.

        Only network clients request it (NBD_CMD_BLOCK_STATUS): copies skip what is reported as
        zero. When it is overridden, replies to READ omit zeroes as well, if the client negotiated
        structured replies.

        Returns:
            At least one extent, in order, the first at ``offset``. The last may end before
            ``offset + length``, or beyond it.

        """
        return [Extent(length)]

    async def cache(self, offset: int, length: int) -> None:
        """Prefetch: a hint that these bytes will be read soon (NBD_CMD_CACHE, network only)."""

    async def unmount(self) -> None:
        """Close the device: release all resources.

        Called once, after the last request and the last flush, however the mount or server ends.
        """


DeviceFactory = Callable[[], BlockDevice | Awaitable[BlockDevice]]
"""A function, async or not, that creates a device; a class is one as well."""


async def make_device(factory: DeviceFactory) -> BlockDevice:
    """Call a factory, async or not, and return the device that it creates."""
    device = factory()
    return await device if inspect.isawaitable(device) else device


def can(device: BlockDevice, operation: Operation) -> bool:
    """Return whether a device supports an operation: its capability, as nbdkit's ``can_trim``.

    It does if it overrides the handler of that name, in its class or on the instance, and if what
    it depends on (the inner device of a layer, an NBD server) supports it too.
    """
    if operation in device._unsupported:
        return False
    handler = getattr(device, operation)
    return getattr(handler, "__func__", None) is not getattr(BlockDevice, operation)


def missing_operations(device: BlockDevice) -> frozenset[Operation]:
    """Return every operation that a device cannot do."""
    return frozenset(each for each in OPERATIONS if not can(device, each))


def handler_for(device: BlockDevice, operation: Operation) -> Callable[..., Awaitable[Any]]:
    """Return what serves an operation: the device's own handler, or the default of BlockDevice.

    For an operation that the device cannot do (:func:`can`) it is the default, applied to this
    device: WRITE_ZEROES becomes writes, FLUSH and hints do nothing, EXTENTS reports data.
    """
    if can(device, operation):
        return cast("Callable[..., Awaitable[Any]]", getattr(device, operation))
    return partial(getattr(BlockDevice, operation), device)
