"""The exceptions of aiovblk.

* :exc:`Error`

  * :exc:`ProtocolError` - the peer broke the NBD protocol; the connection is over.

    * :exc:`OptionRefusedError` - the server refused the export, or an option that is needed.

      * :exc:`TLSRequiredError` - the server talks to nobody without TLS.
      * :exc:`TLSUnavailableError` - the server has no TLS.

  * :exc:`AttachError` (also :exc:`OSError`) - a device could not be attached, or was lost.

    * :exc:`DeviceBusyError` - somebody else holds the device.
    * :exc:`NBDUnavailableError` - this kernel, or this container, offers no NBD device.

  * :exc:`StorageError` (also :exc:`OSError`) - what a disk is kept in is damaged, or not ours.

    * :exc:`StorageBusyError` - another process writes to it.

:data:`OUTAGES` and :data:`STOP_EXCEPTIONS` sort what the handlers of a device may raise.
  * :exc:`MissingExtraError` (also :exc:`ImportError`) - a package is not installed that only some
    need; the message says which command installs it.
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
"""Exceptions of well-known clients, as package and class, that tell of an outage, not of a bug in
a handler: its request fails with EIO, and the log has one line without a traceback. Whatever
derives from one of them is one too. OSError, and with it TimeoutError and ConnectionError, always
is. A device names those of its own in :attr:`aiovblk.BlockDevice.outages`."""

STOP_EXCEPTIONS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
"""What is no failure of what was called, but an order to stop, and is always passed on. All else,
be it no :exc:`Exception` (a panic of an extension in Rust, ``pytest.fail``), is a failure."""


class Error(Exception):
    """Base class of every exception that aiovblk raises on its own account."""


class ProtocolError(Error):
    """The peer sent bytes that are not NBD. Nothing after them can be trusted."""


class OptionRefusedError(ProtocolError):
    """The server refused the export, or an option that is needed; the message has its reason.

    Args:
        reason: one line that can be shown to a user.
        reply: the type of the server's reply, an error of the specification's "Option reply types".

    """

    def __init__(self, reason: str, reply: int) -> None:
        super().__init__(reason)
        self.reply = reply

    def __reduce__(self) -> tuple[type[OptionRefusedError], tuple[str, int]]:
        """Pickle both; an exception's own way knows only what its message is made of."""
        return type(self), (str(self), self.reply)


class TLSRequiredError(OptionRefusedError):
    """The server talks to nobody without TLS: use ``nbds://``."""


class TLSUnavailableError(OptionRefusedError):
    """The server has no TLS, which was asked for: use ``nbd://``, or give it a certificate."""


class AttachError(Error, OSError):
    """A kernel device could not be attached, or its connection was lost.

    Args:
        errno: the system's error number, as in :exc:`OSError`.
        reason: what happened, and where it helps, what to do about it.
        path: the device node, where one is known.

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
        holders: who holds it, in words: ``mounted at /mnt``, ``held by dm-0``,
            ``opened by process 123 (fio)``. Empty when it could not be found out.

    """

    def __init__(
        self, errno: int, reason: str, path: str | None = None, holders: Sequence[str] = ()
    ) -> None:
        super().__init__(errno, reason, path)
        self.holders = tuple(holders)


class NBDUnavailableError(AttachError):
    """There is no NBD device to attach to; the message says how to get one."""


class StorageError(Error, OSError):
    """What a disk is kept in is damaged, of another kind, or cannot be changed in this way.

    Args:
        errno: the system's error number, as in :exc:`OSError`.
        reason: what is wrong, and where it helps, what to do about it.

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
    """A package that only some need is not installed.

    Args:
        reason: what needs which package, and the command that installs it.
        extra: the name of the extra that brings it, as in ``pip install 'aiovblk[extra]'``.

    """

    def __init__(self, reason: str, extra: str) -> None:
        super().__init__(reason)
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Pickle both; an exception's own way knows only what its message is made of."""
        return type(self), (str(self), self.extra)
