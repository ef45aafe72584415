"""The contract between a block device and whoever serves it."""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

_ZEROES = memoryview(bytes(1024 * 1024))

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class Extent(NamedTuple):
    """A run of bytes of one kind; what :meth:`BlockDevice.extents` tells.

    The two facts are those of the specification's ``base:allocation`` metadata context.
    """

    length: int
    """Bytes; at least one."""
    hole: bool = False
    """No space is allocated for it (NBD_STATE_HOLE)."""
    zero: bool = False
    """It reads as zeroes (NBD_STATE_ZERO)."""


class BlockDevice:
    """A disk of fixed size, made of coroutines. Subclass it and override what the disk can do.

    What a subclass declares, as class attributes, instance attributes or properties:

    * :attr:`block_size`: bytes; a power of two. The kernel takes 512 to the page size (4096 on most
      machines), the network 1 to 64 KiB.
    * :attr:`blocks`: how many of them. The device has ``block_size * blocks`` bytes.
    * :attr:`rotational`: true for a medium on which seeking costs time.
    * :attr:`read_only`: follows from :meth:`write`; see there.
    * :attr:`multi_conn`: whether several instances, in several processes, may serve one disk.

    What it overrides says what it can do: the transmission flags of the NBD specification are
    derived from the handlers, never declared a second time.

    **Arguments.** ``offset`` and ``length`` are bytes, multiples of ``block_size``, and lie inside
    the device; ``length`` is at least one block. A request that breaks this never reaches a
    handler. :meth:`read` and :meth:`write` get at most 32 MiB, the others up to 4 GiB from the
    kernel and up to the whole device from the network.

    **Errors.** Raise ``OSError(errno.EIO, "why")`` to fail one request. Any other exception is
    taken for a bug, and the request fails with EIO; unless it tells of an outage: those of
    :data:`aiovblk.errors.OUTAGES` and of :attr:`outages`. The device lives on in all cases. (The
    kernel's driver tells programs EIO whatever the error is.) Each new cause is logged in one line
    that names device, request and reason, a bug with its traceback; when it comes again it is
    counted, and told of now and then. KeyboardInterrupt and SystemExit fail the request and are
    raised on.

    **Concurrency.** Handlers run concurrently, up to the limit that was given to
    :func:`aiovblk.mount`, and finish in any order. Writes of neighbouring blocks are often in
    flight together, and a program that writes the same block twice without waiting gets what it
    asked for. A device that stores in pieces larger than ``block_size`` must keep its own
    read-modify-write cycles apart, or be mounted with ``concurrency=1``, which runs one handler at
    a time. A handler must not block the event loop: nothing is served while it does. Each runs in
    an asyncio task with the context variables of whoever mounted the device; handlers that never
    wait may follow each other in one task.

    **Durability.** :meth:`flush` covers every write whose handler had returned before it began.
    A write that asks to be durable by itself (FUA) is a call of :meth:`write`, then one of
    :meth:`flush`.

    **Cancellation.** A handler is cancelled when ``handler_timeout`` has passed, and when the
    device is taken away by force. It is not cancelled by an unmount in order, nor when the event
    loop is shut down: a handler that is cancelled from outside is started again, because the
    kernel still waits for its answer. Handlers must therefore bear being run twice. One that is
    cancelled again and again, as if it cancelled its own task, fails.
    """

    # Declared as Any: a type checker lets a subclass override nothing else by a class attribute, an
    # attribute of its instances, and a property without a setter alike. What they are is checked
    # when the device is mounted or served (:func:`check_geometry`).
    block_size: Any = 4096
    blocks: Any = 0
    rotational: Any = False
    multi_conn: Any = False
    """Whether instances that are made in the same way, each in a process of its own, are one disk:
    what one has written the others read, and a flush of one covers the writes that the others have
    completed (the promise of NBD_FLAG_CAN_MULTI_CONN). So no instance keeps anything to itself."""

    outages: tuple[type[BaseException], ...] = ()
    """Exceptions that tell of an outage of what the device depends on, beside OSError and those of
    :data:`aiovblk.errors.OUTAGES`: they are logged in one line, not as bugs with a traceback."""

    _read_only: bool | None = None

    if TYPE_CHECKING:
        read_only: Any
        """Whether the kernel refuses writes."""
    else:

        @property
        def read_only(self) -> bool:
            """Whether the kernel refuses writes: by default, when :meth:`write` is not overridden.

            ``read_only = False`` in a class without :meth:`write` lets writes come through and
            fail; ``read_only = True`` keeps them from a class that has it.
            """
            if self._read_only is not None:
                return self._read_only
            return not overrides(self, BlockDevice.write)

        @read_only.setter
        def read_only(self, value: bool) -> None:
            self._read_only = value

    @property
    def size(self) -> int:
        """Bytes of the whole device."""
        size: int = self.block_size * self.blocks
        return size

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Return the ``length`` bytes at ``offset``.

        Returns:
            Exactly ``length`` bytes, as any contiguous bytes-like object. ``bytes`` and read-only
            memoryviews are sent as they are and must not change any more; others are copied
            before the handler's reply is queued. A wrong length is a logged bug, and EIO.

        """
        raise PermissionError(errno.EPERM, "this device cannot be read")

    async def write(self, offset: int, data: memoryview) -> None:
        """Store ``data`` at ``offset``.

        Args:
            offset: bytes.
            data: bytes to read from, valid until this call returns; copy what is to outlive it.

        """
        raise PermissionError(errno.EPERM, "this device cannot be written")

    async def flush(self) -> None:
        """Make every write whose handler has returned durable.

        Once it has failed it must not succeed before those writes are durable: whoever flushes
        again takes them for that. fsync() does succeed then, on top of what the kernel has dropped.

        When it is not overridden the kernel is told that writes are durable when they return. It
        is called once more when the device is unmounted.
        """

    async def trim(self, offset: int, length: int) -> None:
        """Take the hint that these bytes are no longer needed; they may read back as anything."""

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Make these bytes read back as zeroes.

        When it is not overridden, zeroes go to :meth:`write` in pieces of at most 1 MiB. (Linux
        6.12 sends this command even to devices that never asked for it.)

        Args:
            offset: bytes.
            length: bytes, up to 4 GiB: far too many to allocate.
            may_trim: false when the space must stay allocated (NBD_CMD_FLAG_NO_HOLE).

        """
        end = offset + length
        while offset < end:
            piece = min(end - offset, len(_ZEROES))
            await self.write(offset, _ZEROES[:piece])
            offset += piece
            if offset < end:
                await asyncio.sleep(0)  # then others have their turn: it may be terabytes

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Tell which parts of these bytes are holes, and which read as zeroes.

        Asked only over the network (NBD_CMD_BLOCK_STATUS), where copies skip what is told to be
        zero. When it is overridden, reads of clients that can take it leave zeroes out as well.

        Returns:
            Extents in order, the first at ``offset``. They may end before ``offset + length``, if
            there is at least one, and beyond it.

        """
        return [Extent(length)]

    async def cache(self, offset: int, length: int) -> None:
        """Take the hint that these bytes will be read soon (NBD_CMD_CACHE, network only)."""

    async def unmount(self) -> None:
        """Let go of everything.

        Called once, after the last request and the last flush, on every way out.
        """


DeviceFactory = Callable[[], BlockDevice | Awaitable[BlockDevice]]
"""A function, async or not, that makes a device; a class is one as well."""


async def make_device(factory: DeviceFactory) -> BlockDevice:
    """Make a device."""
    device = factory()
    return await device if inspect.isawaitable(device) else device


def overrides(device: BlockDevice, method: Callable[..., Any]) -> bool:
    """Whether ``device`` has a method of its own in place of this one of BlockDevice."""
    own = getattr(device, method.__name__)
    return getattr(own, "__func__", None) is not method


def check_instance(device: object, role: str = "") -> BlockDevice:
    """Refuse what is no device.

    Args:
        device: what was given.
        role: the name of the parameter that it was given as.

    Raises:
        TypeError: it is none; the message says what to do about it.

    """
    if isinstance(device, BlockDevice):
        return device
    hint = ""
    if isinstance(device, type):
        hint = f" (make an instance of it: {device.__name__}(...))"
    elif inspect.isawaitable(device):
        hint = " (await it)"
    elif inspect.isroutine(device):
        hint = " (call it)"
    where = f"{role} must be a BlockDevice, not" if role else "expected a BlockDevice, got"
    raise TypeError(f"{where} {device!r}{hint}")


def check_geometry(
    device: object, *, min_block_size: int = 512, max_block_size: int = PAGE_SIZE
) -> BlockDevice:
    """Refuse a device whose declared size its client would refuse, or would misunderstand.

    The limits are by default those of nbd_set_size in the kernel's drivers/block/nbd.c: a block of
    512 bytes to one page, and an offset that fits a signed 64-bit number.

    Args:
        device: what is to be served.
        min_block_size: bytes of the smallest block.
        max_block_size: bytes of the largest.

    Returns:
        The device.

    Raises:
        TypeError: not a :class:`BlockDevice`, or a number is not an int.
        ValueError: a number is out of range.

    """
    device = check_instance(device)
    for name, value in (("block_size", device.block_size), ("blocks", device.blocks)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, not {value!r}")
    if not min_block_size <= device.block_size <= max_block_size or device.block_size & (
        device.block_size - 1
    ):
        raise ValueError(
            f"block_size must be a power of two from {min_block_size} to {max_block_size},"
            f" not {device.block_size}"
        )
    if device.blocks < 1:
        raise ValueError(f"blocks must be at least 1, not {device.blocks}")
    if device.size > 2**63 - PAGE_SIZE:
        raise ValueError(f"a device of {device.size} bytes is larger than Linux can address")
    return device
