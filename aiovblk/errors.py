"""The exceptions of aiovblk.

* :exc:`Error`

  * :exc:`ProtocolError` - the peer broke the NBD protocol; the connection is over.

    * :exc:`OptionRefusedError` - the server refused the export, or an option that is needed.

      * :exc:`TLSRequiredError` - the server requires TLS.
      * :exc:`TLSUnavailableError` - the server has no TLS.

  * :exc:`AttachError` (also :exc:`OSError`) - a device could not be attached, or was lost.

    * :exc:`DeviceBusyError` - another process or mount uses the device.
    * :exc:`NBDUnavailableError` - this kernel, or this container, offers no NBD device.
    * :exc:`UblkUnavailableError` - it cannot serve devices by ublk.

  * :exc:`StorageError` (also :exc:`OSError`) - the data of a disk is damaged, or not aiovblk's.

    * :exc:`StorageBusyError` - another process writes to the disk.

  * :exc:`MissingExtraError` (also :exc:`ImportError`) - an optional package is not installed; the
    message has the command that installs it.

:data:`OUTAGES` and :data:`STOP_EXCEPTIONS` classify what the handlers of a device may raise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

OUTAGES = (
    "aiohttp.ClientError",
    "anyio.BrokenResourceError",
    "anyio.EndOfStream",
    "asyncio.IncompleteReadError",
    "asyncpg.InterfaceError",
    "asyncpg.PostgresError",
    "azure.AzureError",
    "botocore.BotoCoreError",
    "botocore.ClientError",
    "google.GoogleAPIError",
    "grpc.RpcError",
    "httpcore.NetworkError",
    "httpcore.TimeoutException",
    "httpx.HTTPError",
    "obstore.BaseError",
    "psycopg.Error",
    "pymongo.PyMongoError",
    "redis.RedisError",
    "websockets.WebSocketException",
)
"""Exceptions of well-known client libraries, as package and class, that mean an outage and not a
bug in a handler: the request fails with EIO, and the log has one line without a traceback.
Subclasses are included. OSError, and with it TimeoutError and ConnectionError, is always an outage.
A device adds its own in :attr:`aiovblk.BlockDevice.outages`."""

STOP_EXCEPTIONS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
"""Exceptions that ask to stop (cancellation, interrupt, exit), and are always raised again. All
others are failures, even those that are no :exc:`Exception` (a panic of an extension in Rust,
``pytest.fail``)."""


class Error(Exception):
    """Base class of all exceptions that aiovblk defines."""


class ProtocolError(Error):
    """The peer violated the NBD protocol. Nothing that it sends afterwards can be trusted."""


class OptionRefusedError(ProtocolError):
    """The server refused the export, or an option that is needed; the message has the reason.

    Args:
        reason: one line that can be shown to a user.
        reply: the type of the server's reply, an error of the specification's "Option reply types".

    """

    def __init__(self, reason: str, reply: int) -> None:
        super().__init__(reason)
        self.reply = reply

    def __reduce__(self) -> tuple[type[OptionRefusedError], tuple[str, int]]:
        """Pickle all arguments; the default of exceptions has only those of the message."""
        return type(self), (str(self), self.reply)


class TLSRequiredError(OptionRefusedError):
    """The server requires TLS: use ``nbds://``."""


class TLSUnavailableError(OptionRefusedError):
    """TLS was requested, but the server has none: use ``nbd://``, or give it a certificate."""


class AttachError(Error, OSError):
    """A kernel device could not be attached, or its connection was lost.

    Args:
        errno: the system's error number, as in :exc:`OSError`.
        reason: what happened, and if that helps, what to do about it.
        path: the device node, if one is known.

    """

    def __init__(self, errno: int, reason: str, path: str | None = None) -> None:
        super().__init__(errno, reason, path)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        """One line that can be shown to a user as it is."""
        return f"{self.path}: {self.reason}" if self.path else self.reason


class DeviceBusyError(AttachError):
    """The device is in use.

    Attributes:
        holders: the users of the device, in words: ``mounted at /mnt``, ``held by dm-0``,
            ``opened by process 123 (fio)``. Empty if they could not be determined.

    """

    def __init__(
        self, errno: int, reason: str, path: str | None = None, holders: Sequence[str] = ()
    ) -> None:
        super().__init__(errno, reason, path)
        self.holders = tuple(holders)


class NBDUnavailableError(AttachError):
    """No NBD device is available to attach to; the message says how to get one."""


class UblkUnavailableError(AttachError):
    """No device can be served by ublk here; the message says why, and what helps."""


class StorageError(Error, OSError):
    """The data that a disk is stored in is damaged, of another format, or cannot be changed so.

    Args:
        errno: the system's error number, as in :exc:`OSError`.
        reason: what is wrong, and if that helps, what to do about it.

    """

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(errno, reason)
        self.reason = reason

    def __str__(self) -> str:
        """One line that can be shown to a user as it is."""
        return self.reason


class StorageBusyError(StorageError):
    """Another process writes to the disk, or has taken it over."""


class MissingExtraError(Error, ImportError):
    """An optional package is not installed.

    Args:
        reason: what needs which package, and the command that installs it.
        extra: the name of the extra that includes it, as in ``pip install 'aiovblk[extra]'``.

    """

    def __init__(self, reason: str, extra: str) -> None:
        super().__init__(reason)
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Pickle all arguments; the default of exceptions has only those of the message."""
        return type(self), (str(self), self.extra)
