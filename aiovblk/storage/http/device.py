"""The read-only block device on top of a file on a web server."""

from __future__ import annotations

import errno
import hashlib
from ssl import SSLContext
from typing import Self

from ...aio.backoff import RETRY_TIMEOUT
from ...aio.gather import gather_all
from ...arguments import check_block_size, check_count, check_seconds
from ...device import BlockDevice
from ...errors import StorageError
from .resource import HTTPResource

_MAX_REQUEST = 1 << 20
"""Bytes of one request: few enough for a slow connection, and several are made concurrently."""


class HTTPDevice(BlockDevice):
    """A read-only disk that is a file on a web server, such as an image to install from.

    It is read by range requests and never as a whole, from any server that supports them. Nothing
    is cached: see :class:`~aiovblk.storage.Cache`, and :class:`~aiovblk.storage.Overlay` for a disk
    that can be written.

    Made by :meth:`open`.

    The file must not change while it is open. Each response is verified to be of the version that
    was opened, by its validators: the ETag, or else the date (of one second); the server gets them
    as a condition, too. For any other version, reads fail with EIO, and the log says so once. So a
    read never mixes two versions.

    A request that gets no response, or one of 408, 425, 429 or 5xx (the server throttles or fails),
    is retried with backoff until the retry timeout (``patience``) has passed; then the read fails.
    A request whose response comes slower than 4 KiB a second is retried as well.

    Redirects are followed, but not from https to http; user and password are sent only to the
    server that they are for. Reads stay with the server that a redirect has led to, until it fails:
    then the first one is asked again, and may lead to another mirror. That must have the same size,
    and the same ETag or date.

    Concurrency: any number of reads; no more than ``requests`` are in flight, others wait. A read
    of more than 1 MiB makes several.

    Cancellation: safe.
    """

    def __init__(self, file: HTTPResource, block_size: int) -> None:
        """See :meth:`open`."""
        self._file = file
        self.block_size = block_size
        self.blocks = file.version.size // block_size

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        block_size: int | None = None,
        authorization: str | None = None,
        tls: SSLContext | None = None,
        requests: int = 32,
        patience: float = RETRY_TIMEOUT,
    ) -> Self:
        """Open a file: request its first bytes, to learn its size and its validators.

        Args:
            url: ``https://HOST/FILE``, or ``http:``. A user and a password in it are sent as Basic
                authorization; neither they nor the query appear in logs and errors.
            block_size: bytes, a power of two: the sector size for which the file was made. By
                default 512, as of nearly every disk image.
            authorization: the header of that name, ``Bearer ...`` say; takes precedence over a
                password in the URL.
            tls: which certificates to trust; by default those that OpenSSL does (``SSL_CERT_FILE``
                in the environment).
            requests: concurrent ones at most, each on a connection of its own.
            patience: the retry timeout: seconds for which a failing request is retried.

        Raises:
            ValueError: ``url`` or a number is invalid.
            MissingExtraError: the package aiohttp is not installed.
            StorageError: the server supports no ranges, or sends no size or no validators; the size
                is no multiple of 512, or of ``block_size``; or the file cannot be read.

        Cancellation: safe.

        """
        check_block_size(block_size)
        check_count("requests", requests)
        check_seconds("patience", patience, zero=True)
        file = await HTTPResource.open(
            url, authorization=authorization, tls=tls, requests=requests, timeout=patience
        )
        try:
            return cls(file, _block_size(file, block_size))
        except BaseException:
            await file.close()
            raise

    @property
    def identity(self) -> str:
        """Identifies this version of this file, for a cache or an overlay.

        At most 468 bytes of UTF-8, without secrets; the same when the URL has another signature.
        """
        name = self._file.name
        digest = hashlib.sha256(f"{name}\n{self._file.version.tag}".encode()).hexdigest()
        return f"{name[:100]} {digest[:32]}"

    async def read(self, offset: int, length: int) -> bytes:
        """Read from the server, by requests of at most 1 MiB."""
        if length <= _MAX_REQUEST:
            return await self._file.read(offset, length)
        end = offset + length
        pieces = await gather_all(
            self._file.read(start, min(_MAX_REQUEST, end - start))
            for start in range(offset, end, _MAX_REQUEST)
        )
        return b"".join(pieces)

    async def unmount(self) -> None:
        """Close the connections."""
        await self._file.close()


def _block_size(file: HTTPResource, wanted: int | None) -> int:
    """Return the block size, if the file's size is a multiple of it."""
    size = file.version.size
    reason = f"{file.name}: it has {size} bytes"
    if size == 0 or size % 512:
        raise StorageError(
            errno.EINVAL,
            f"{reason}, no multiple of 512, and so is no image of a disk. If it is compressed,"
            " unpack it on the server; else `truncate -s %512` it there",
        )
    if wanted is None:
        return 512
    if size % wanted:
        raise StorageError(
            errno.EINVAL, f"{reason}, no multiple of {wanted}; choose another block_size"
        )
    return wanted
