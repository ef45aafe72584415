"""A disk that is a file on a web server."""

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

_PIECE = 1 << 20
"""Bytes of one request: a slow line brings them in time, and several come at once."""


class HTTPDevice(BlockDevice):
    """A read-only disk that is a file on a web server, such as an image to install from.

    It is read in parts (range requests) and never as a whole, from any server that serves parts.
    Nothing is kept: see :class:`~aiovblk.storage.Cache`, and :class:`~aiovblk.storage.Overlay` for
    a disk that can be written.

    Made by :meth:`open`.

    The file must not change while it is open. Each answer is seen to be of the version that was
    opened, by its ETag or else its date (of one second), which the server is told as well; from
    any other, reads fail with EIO, and the log says so once. So nobody reads parts of two versions.

    A server that does not answer, throttles or fails (408, 425, 429, 5xx) is asked again, with
    growing pauses, as long as patience lasts; then the read fails. So is one whose answer comes
    slower than 4 KiB a second.

    Redirects are followed, but not from https to http; user and password stay with the server that
    they are for. Reads stay with the server that a redirect has led to, until it fails: then the
    first one is asked again, and may lead to another mirror. That must have the same size, and the
    same ETag or date.

    Concurrency: any number of reads; of those in excess of ``requests``, and of those of more than
    1 MiB, which are made of several, some wait.

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
        """Ask for the file's beginning, and so find out how long it is, and which version.

        Args:
            url: ``https://HOST/FILE``, or ``http:``. A user and a password in it are sent as Basic
                authorization; neither they nor the query show up in logs and errors.
            block_size: bytes, a power of two: for which size of sectors the file is made. By
                default 512, as nearly every disk image.
            authorization: the header of that name, ``Bearer ...`` say; takes precedence over a
                password in the URL.
            tls: whom to trust; by default those whom OpenSSL does (``SSL_CERT_FILE`` in the
                environment).
            requests: how many are in flight, each on a connection of its own.
            patience: seconds; see above.

        Raises:
            ValueError: ``url`` or a number makes no sense.
            MissingExtraError: the package aiohttp is not installed.
            StorageError: the server serves no parts, or does not tell the length or the version;
                the length is no multiple of 512, or of ``block_size``; or the file cannot be had.

        Cancellation: safe.

        """
        check_block_size(block_size)
        check_count("requests", requests)
        check_seconds("patience", patience, zero=True)
        file = await HTTPResource.open(
            url, authorization=authorization, tls=tls, requests=requests, patience=patience
        )
        try:
            return cls(file, _block_size(file, block_size))
        except BaseException:
            await file.close()
            raise

    @property
    def identity(self) -> str:
        """What tells this version of this file from all others, for a cache or an overlay.

        At most 468 bytes of UTF-8, without secrets; the same when the URL has another signature.
        """
        name = self._file.name
        digest = hashlib.sha256(f"{name}\n{self._file.version.tag}".encode()).hexdigest()
        return f"{name[:100]} {digest[:32]}"

    async def read(self, offset: int, length: int) -> bytes:
        """Read from the server."""
        if length <= _PIECE:
            return await self._file.read(offset, length)
        end = offset + length
        pieces = await gather_all(
            self._file.read(start, min(_PIECE, end - start)) for start in range(offset, end, _PIECE)
        )
        return b"".join(pieces)

    async def unmount(self) -> None:
        """Close the connections."""
        await self._file.close()


def _block_size(file: HTTPResource, wanted: int | None) -> int:
    size = file.version.size
    found = f"{file.name}: it has {size} bytes"
    if size == 0 or size % 512:
        raise StorageError(
            errno.EINVAL,
            f"{found}, no multiple of 512, and so is no image of a disk. If it is compressed,"
            " unpack it on the server; else `truncate -s %512` it there",
        )
    if wanted is None:
        return 512
    if size % wanted:
        raise StorageError(errno.EINVAL, f"{found}, no multiple of {wanted}")
    return wanted
