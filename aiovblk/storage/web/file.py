"""One version of a file on a web server, read in parts."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Self, TypeVar

from ...extras import extra
from ..patience import repeat
from .address import Address
from .answers import AnswerError, ChangedError, check_status, explained, read_body, read_range
from .version import Version

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiohttp import ClientResponse, ClientSession

T = TypeVar("T")

logger = logging.getLogger("aiovblk")

_FIRST = 512  # bytes of the first request
_REDIRECTS = 10
_SILENCE = 30.0  # seconds after which a connection without a byte is given up, at most


class WebFile:
    """A file on a web server, as it was when it was opened; every answer is checked to be of it.

    Concurrency: any number of reads; what exceeds the number of connections waits for one.

    Cancellation: safe; the connection is closed.

    Args:
        address: of the file.
        session: whose connections are used; it belongs to the file.
        patience: seconds; see :data:`.patience.PATIENCE`.

    """

    def __init__(self, address: Address, session: ClientSession, patience: float) -> None:
        self.name = address.name
        self.version = Version(0)
        self._url = address.url
        self._session = session
        self._patience = patience
        self._change_told = False

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        authorization: str | None,
        tls: SSLContext | None,
        requests: int,
        patience: float,
    ) -> Self:
        """Find out which version the server has.

        Raises:
            ValueError: ``url`` is no address.
            MissingExtraError: the package aiohttp is not installed.
            StorageError: the file cannot be had, or not in parts.

        """
        address = Address.parse(url)
        session = _session(authorization or address.authorization, tls, requests, patience)
        file = cls(address, session, patience)
        try:
            file.version = await file._repeat(file._look)
        except BaseException:
            await file.close()
            raise
        return file

    async def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the version that was opened.

        Raises:
            StorageError: they cannot be had. EIO: the file has changed.

        """
        return await self._repeat(partial(self._get, offset, length))

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _repeat(self, request: Callable[[], Awaitable[T]]) -> T:
        return await repeat(request, partial(explained, name=self.name), patience=self._patience)

    async def _look(self) -> Version:
        async with self._part(0, _FIRST) as response:
            if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise AnswerError("it is empty", errno.EINVAL)
            check_status(response)
            start, length, size = read_range(response)
            if size is None:
                raise AnswerError("the server does not tell how long it is", errno.EOPNOTSUPP)
            _check_part((start, length), (0, min(_FIRST, size)))
            await read_body(response, length)
        version = Version.of(response.headers, size)
        if not version.can_be_told:
            raise AnswerError(
                "the server tells neither ETag nor Last-Modified, so nobody would notice if it"
                " changed; download it, and use file:PATH",
                errno.EOPNOTSUPP,
            )
        return version

    async def _get(self, offset: int, length: int) -> bytes:
        async with self._part(offset, length, self.version.conditions) as response:
            try:
                self._check_version(response)
            except ChangedError as exc:
                if not self._change_told:
                    self._change_told = True
                    logger.error("%s: %s", self.name, exc)
                raise
            _check_part(read_range(response)[:2], (offset, length))
            return await read_body(response, length)

    def _check_version(self, response: ClientResponse) -> None:
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise ChangedError  # it has shrunk
        check_status(response)
        size = read_range(response)[2]
        if not self.version.is_same(Version.of(response.headers, size or self.version.size)):
            raise ChangedError

    @asynccontextmanager
    async def _part(
        self, offset: int, length: int, conditions: Mapping[str, str] | None = None
    ) -> AsyncIterator[ClientResponse]:
        from yarl import URL

        headers = {"Range": f"bytes={offset}-{offset + length - 1}", **(conditions or {})}
        url = URL(self._url, encoded=True)  # as it is: it may be signed
        async with self._session.get(url, headers=headers, max_redirects=_REDIRECTS) as response:
            way = [each.url.scheme for each in (*response.history, response)]
            if way[0] == "https" and "http" in way:
                raise AnswerError("the server redirects from https to http")
            yield response


def _check_part(found: tuple[int, int], expected: tuple[int, int]) -> None:
    if found != expected:
        raise AnswerError(
            f"the answer has {found[1]} bytes at {found[0]}, not {expected[1]} at {expected[0]}",
            passes=True,
        )


def _session(
    authorization: str | None, tls: SSLContext | None, requests: int, patience: float
) -> ClientSession:
    with extra("http", "files on the web"):
        import aiohttp
    silence = min(patience / 2, _SILENCE)  # so that there is time for another
    headers = {"User-Agent": "aiovblk", "Accept-Encoding": "identity"}
    if authorization is not None:
        headers["Authorization"] = authorization  # not for others that a redirect leads to
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=requests, ssl=tls or True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence),
        headers=headers,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        requote_redirect_url=False,  # it may be signed
    )
