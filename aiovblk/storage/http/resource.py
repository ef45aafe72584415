"""Read one version of a file on a web server: range requests, retries, redirects and mirrors.

What holds here: a read returns bytes of the version that was opened, or fails. Every response is
compared with its validators (ETag, Last-Modified, size), whichever server has sent it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit

from ...aio.backoff import RetryLog, retry
from ...extras import extra
from .responses import (
    ChangedError,
    ResponseError,
    check_status,
    classify_error,
    read_body,
    read_range,
)
from .url import HTTPURL
from .validators import Validators

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiohttp import ClientResponse, ClientSession

T = TypeVar("T")

ReadResponse: TypeAlias = "Callable[[ClientResponse], Awaitable[T]]"

logger = logging.getLogger("aiovblk")

_PROBE_LENGTH = 512  # bytes of the first request
_MAX_REDIRECTS = 10
_MAX_MIRRORS = 8  # to which one read is redirected before it fails
_MAX_READ_TIMEOUT = 30.0  # seconds without a byte, after which a connection is closed, at most
_MIN_RATE = 4096  # bytes a second, on average over a whole response


class HTTPResource:
    """Read a file on a web server, in the version that was opened.

    If the server redirects, reads stay with the server that it has led to (a mirror) for as long as
    that serves; when it fails, the first one is asked again, and may lead to another one.

    Concurrency: any number of reads; those beyond the number of connections wait for one.

    Cancellation: safe; the connection is closed.

    Args:
        address: of the file.
        authorization: the header of that name, for the server that the address names.
        session: with the connections; it belongs to the file, and is closed with it.
        requests: concurrent ones at most.
        timeout: seconds for which a failing request is retried; see
            :data:`~aiovblk.aio.backoff.RETRY_TIMEOUT`.

    """

    def __init__(
        self,
        address: HTTPURL,
        authorization: str | None,
        session: ClientSession,
        requests: int,
        timeout: float,
    ) -> None:
        self.name = address.name
        self.version = Validators(0)
        self._url = address.url
        self._authorization = authorization
        self._session = session
        self._limiter = asyncio.Semaphore(requests)
        self._timeout = timeout
        self._notices = RetryLog()
        self._change_reported = False
        self._version_place = ""  # the server and path whose validators `version` has
        self._mirror: RedirectTarget | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        authorization: str | None,
        tls: SSLContext | None,
        requests: int,
        timeout: float,
    ) -> Self:
        """Request the file's first bytes, to learn its size and its validators.

        Raises:
            ValueError: ``url`` is no URL of a file.
            MissingExtraError: the package aiohttp is not installed.
            StorageError: the file cannot be read, or not in parts.

        """
        address = HTTPURL.parse(url)
        session = _session(tls, requests, timeout)
        authorization = authorization or address.authorization
        file = cls(address, authorization, session, requests, timeout)
        try:
            await file._retry(file._probe)
        except BaseException:
            await file.close()
            raise
        return file

    async def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the version that was opened.

        Raises:
            StorageError: they cannot be read. EIO: the file has changed.

        """
        return await self._retry(partial(self._get, offset, length))

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _retry(self, request: Callable[[], Awaitable[T]]) -> T:
        judge = partial(classify_error, name=self.name)
        return await retry(request, judge, timeout=self._timeout, notices=self._notices)

    async def _probe(self) -> None:
        """Learn which version there is."""
        await self._follow_redirects(0, _PROBE_LENGTH, self._read_validators)

    async def _get(self, offset: int, length: int) -> bytes:
        try:
            return await self._get_anywhere(offset, length)
        except ChangedError as exc:
            if not self._change_reported:
                self._change_reported = True
                logger.error("%s: %s", self.name, exc)
            raise

    async def _get_anywhere(self, offset: int, length: int) -> bytes:
        """Read from the last mirror; if it fails, follow the redirects of the URL again."""
        read = partial(self._read_part, offset, length)
        mirror = self._mirror
        if mirror is None:
            return await self._follow_redirects(offset, length, read)
        try:
            return await self._request(mirror.url, offset, length, mirror.version, read)
        except Exception as exc:
            logger.debug(
                "%s: a mirror failed, following redirects again: %s",
                self.name,
                classify_error(exc, self.name)[0],
            )
            failure = exc
        try:
            return await self._follow_redirects(offset, length, read)
        except ResponseError as exc:
            if exc.transient:
                raise
            raise failure from None  # the mirror's: it may be transient

    async def _follow_redirects(self, offset: int, length: int, read: ReadResponse[T]) -> T:
        """Request the URL again until it leads to a mirror that serves the part.

        Raises:
            ResponseError: of the last mirror, when it leads to one that was tried, or to too many.

        """
        version = self.version if self._version_place == _place(self._url) else None
        tried: set[str] = set()
        while True:
            place = ""

            async def note(response: ClientResponse) -> T:
                nonlocal place
                place = _place(str(response.url))
                return await read(response)

            try:
                return await self._request(self._url, offset, length, version, note)
            except ResponseError:
                # Another mirror may have what this one lacks; one that was tried before has not.
                if place in {"", _place(self._url), *tried} or len(tried) == _MAX_MIRRORS:
                    raise
                tried.add(place)

    async def _read_validators(self, response: ClientResponse) -> None:
        """Take size and validators from the response to the first request."""
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise ResponseError("it is empty", errno.EINVAL)
        check_status(response)
        start, length, size = read_range(response)
        if size is None:
            raise ResponseError(
                "the server does not say how long it is (Content-Range)", errno.EOPNOTSUPP
            )
        _check_part((start, length), (0, min(_PROBE_LENGTH, size)))
        await read_body(response, length)
        version = Validators.of(response.headers, size)
        if not version.is_comparable:
            raise ResponseError(
                "the server sends neither ETag nor Last-Modified, so a change would go unnoticed;"
                " download it, and use file:PATH",
                errno.EOPNOTSUPP,
            )
        self.version, self._version_place = version, _place(str(response.url))
        self._remember_mirror(response, version)

    async def _read_part(self, offset: int, length: int, response: ClientResponse) -> bytes:
        version = self._check_version(response)
        _check_part(read_range(response)[:2], (offset, length))
        data = await read_body(response, length)
        self._remember_mirror(response, version)
        return data

    def _check_version(self, response: ClientResponse) -> Validators:
        """Return the validators of a response, if it is of the version that was opened."""
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise ChangedError  # it has shrunk
        check_status(response)
        found = Validators.of(response.headers, read_range(response)[2] or self.version.size)
        place, mirror = _place(str(response.url)), self._mirror
        if place == self._version_place:
            same = self.version.matches(found)
        elif mirror is not None and place == _place(mirror.url):
            same = mirror.version.matches(found)
        else:
            same = self.version.matches_mirror(found)
        if not same:
            raise ChangedError
        return found

    def _remember_mirror(self, response: ClientResponse, version: Validators) -> None:
        """Make the next requests where a redirect has led this one."""
        if response.history:
            self._mirror = RedirectTarget(str(response.url), version)

    async def _request(
        self, url: str, offset: int, length: int, version: Validators | None, read: ReadResponse[T]
    ) -> T:
        """Make a range request, with a timeout for the whole response.

        Args:
            url: of the file or a mirror.
            offset: of the part.
            length: of the part; bytes.
            version: whose validators are sent as a condition; None for no condition.
            read: reads the response.

        """
        from yarl import URL

        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        if version is not None:
            headers |= version.conditions
        if self._authorization is not None and _origin(url) == _origin(self._url):
            headers["Authorization"] = self._authorization  # a redirect does not pass it on
        limit = 2 * _read_timeout(self._timeout) + length / _MIN_RATE
        async with self._limiter:
            try:
                async with (
                    asyncio.timeout(limit) as response_timeout,
                    self._session.get(
                        URL(url, encoded=True),  # as it is: it may be signed
                        headers=headers,
                        max_redirects=_MAX_REDIRECTS,
                    ) as response,
                ):
                    schemes = [each.url.scheme for each in (*response.history, response)]
                    if schemes[0] == "https" and "http" in schemes:
                        raise ResponseError("the server redirects from https to http")
                    return await read(response)
            except TimeoutError:
                if not response_timeout.expired():
                    raise
                reason = f"the response takes longer than {limit:.0f} s for {length} bytes"
                raise ResponseError(reason, transient=True) from None


@dataclass(frozen=True, slots=True)
class RedirectTarget:
    """The mirror that a redirect has led to."""

    url: str
    version: Validators
    """The file's validators there."""


def _place(url: str) -> str:
    """Return a URL without its query, which may be a signature that changes."""
    return url.partition("?")[0]


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _read_timeout(timeout: float) -> float:
    return min(timeout / 2, _MAX_READ_TIMEOUT)  # half, so that there is time for a retry


def _check_part(found: tuple[int, int], expected: tuple[int, int]) -> None:
    if found != expected:
        raise ResponseError(
            f"the response has {found[1]} bytes at {found[0]}, not {expected[1]} at {expected[0]}",
            transient=True,
        )


def _session(tls: SSLContext | None, requests: int, timeout: float) -> ClientSession:
    with extra("http", "files on the web"):
        import aiohttp

    seconds = _read_timeout(timeout)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=requests, ssl=tls or True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds),
        headers={"User-Agent": "aiovblk", "Accept-Encoding": "identity"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        requote_redirect_url=False,  # it may be signed
    )
