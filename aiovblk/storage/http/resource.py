"""One version of a file on a web server, read in parts."""

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

_FIRST = 512  # bytes of the first request
_REDIRECTS = 10
_MIRRORS = 8  # to which a request is redirected before it fails
_SILENCE = 30.0  # seconds after which a connection without a byte is given up, at most
_SLOWEST = 4096  # bytes a second in which an answer must come on the whole


class HTTPResource:
    """A file on a web server, as it was when it was opened; every answer is checked to be of it.

    If the server redirects, reads stay with the server that it has led to, for as long as that
    serves; when it fails, the first one is asked again, and may lead to another one.

    Concurrency: any number of reads; what exceeds the number of connections waits for one.

    Cancellation: safe; the connection is closed.

    Args:
        address: of the file.
        authorization: the header of that name, for the server that the address names.
        session: whose connections are used; it belongs to the file.
        requests: how many are made at once.
        patience: seconds; see :data:`.timeout.RETRY_TIMEOUT`.

    """

    def __init__(
        self,
        address: HTTPURL,
        authorization: str | None,
        session: ClientSession,
        requests: int,
        patience: float,
    ) -> None:
        self.name = address.name
        self.version = Validators(0)
        self._url = address.url
        self._authorization = authorization
        self._session = session
        self._limiter = asyncio.Semaphore(requests)
        self._timeout = patience
        self._notices = RetryLog()
        self._change_reported = False
        self._first = ""  # where the version was told
        self._mirror: Mirror | None = None

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
        address = HTTPURL.parse(url)
        session = _session(tls, requests, patience)
        authorization = authorization or address.authorization
        file = cls(address, authorization, session, requests, patience)
        try:
            await file._retry(file._probe)
        except BaseException:
            await file.close()
            raise
        return file

    async def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the version that was opened.

        Raises:
            StorageError: they cannot be had. EIO: the file has changed.

        """
        return await self._retry(partial(self._get, offset, length))

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _retry(self, request: Callable[[], Awaitable[T]]) -> T:
        explain = partial(classify_error, name=self.name)
        return await retry(request, explain, timeout=self._timeout, notices=self._notices)

    async def _probe(self) -> None:
        """Find out which version there is."""
        await self._follow_redirects(0, _FIRST, self._read_validators)

    async def _get(self, offset: int, length: int) -> bytes:
        try:
            return await self._get_anywhere(offset, length)
        except ChangedError as exc:
            if not self._change_reported:
                self._change_reported = True
                logger.error("%s: %s", self.name, exc)
            raise

    async def _get_anywhere(self, offset: int, length: int) -> bytes:
        take = partial(self._read_part, offset, length)
        mirror = self._mirror
        if mirror is None:
            return await self._follow_redirects(offset, length, take)
        try:
            return await self._request(mirror.url, offset, length, mirror.version, take)
        except Exception as exc:
            logger.debug(
                "%s: a mirror has failed: %s", self.name, classify_error(exc, self.name)[0]
            )
            failure = exc
        try:
            return await self._follow_redirects(offset, length, take)
        except ResponseError as exc:
            if exc.transient:
                raise
            raise failure from None  # which may pass

    async def _follow_redirects(self, offset: int, length: int, take: ReadResponse[T]) -> T:
        """Ask the server that the URL names, and those that it leads to, until one answers well."""
        version = self.version if self._first == _place(self._url) else None
        tried: set[str] = set()
        while True:
            place = ""

            async def note(response: ClientResponse) -> T:
                nonlocal place
                place = _place(str(response.url))
                return await take(response)

            try:
                return await self._request(self._url, offset, length, version, note)
            except ResponseError:
                # Another mirror may have what this one lacks; one that was asked before has not.
                if place in {"", _place(self._url), *tried} or len(tried) == _MIRRORS:
                    raise
                tried.add(place)

    async def _read_validators(self, response: ClientResponse) -> None:
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise ResponseError("it is empty", errno.EINVAL)
        check_status(response)
        start, length, size = read_range(response)
        if size is None:
            raise ResponseError("the server does not tell how long it is", errno.EOPNOTSUPP)
        _check_part((start, length), (0, min(_FIRST, size)))
        await read_body(response, length)
        version = Validators.of(response.headers, size)
        if not version.is_comparable:
            raise ResponseError(
                "the server tells neither ETag nor Last-Modified, so nobody would notice if it"
                " changed; download it, and use file:PATH",
                errno.EOPNOTSUPP,
            )
        self.version, self._first = version, _place(str(response.url))
        self._remember_mirror(response, version)

    async def _read_part(self, offset: int, length: int, response: ClientResponse) -> bytes:
        version = self._check_version(response)
        _check_part(read_range(response)[:2], (offset, length))
        data = await read_body(response, length)
        self._remember_mirror(response, version)
        return data

    def _check_version(self, response: ClientResponse) -> Validators:
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise ChangedError  # it has shrunk
        check_status(response)
        found = Validators.of(response.headers, read_range(response)[2] or self.version.size)
        place, mirror = _place(str(response.url)), self._mirror
        if place == self._first:
            same = self.version.matches(found)
        elif mirror is not None and place == _place(mirror.url):
            same = mirror.version.matches(found)
        else:
            same = self.version.matches_mirror(found)
        if not same:
            raise ChangedError
        return found

    def _remember_mirror(self, response: ClientResponse, version: Validators) -> None:
        """Make the next requests where this one has led to."""
        if response.history:
            self._mirror = Mirror(str(response.url), version)

    async def _request(
        self, url: str, offset: int, length: int, version: Validators | None, take: ReadResponse[T]
    ) -> T:
        """Make a request.

        Args:
            url: where.
            offset: of the part.
            length: of the part; bytes.
            version: that the server is told to answer from, or not at all.
            take: takes the answer in.

        """
        from yarl import URL

        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        if version is not None:
            headers |= version.conditions
        if self._authorization is not None and _origin(url) == _origin(self._url):
            headers["Authorization"] = self._authorization  # not for others, nor is it redirected
        limit = 2 * _read_timeout(self._timeout) + length / _SLOWEST
        async with self._limiter:
            try:
                async with (
                    asyncio.timeout(limit) as whole,
                    self._session.get(
                        URL(url, encoded=True),  # as it is: it may be signed
                        headers=headers,
                        max_redirects=_REDIRECTS,
                    ) as response,
                ):
                    way = [each.url.scheme for each in (*response.history, response)]
                    if way[0] == "https" and "http" in way:
                        raise ResponseError("the server redirects from https to http")
                    return await take(response)
            except TimeoutError:
                if not whole.expired():
                    raise
                reason = f"the answer takes longer than {limit:.0f} s for {length} bytes"
                raise ResponseError(reason, transient=True) from None


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where a redirect has led to."""

    url: str
    version: Validators
    """In its own words."""


def _place(url: str) -> str:
    """Where a file is, whatever the signature of the moment."""
    return url.partition("?")[0]


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _read_timeout(patience: float) -> float:
    return min(patience / 2, _SILENCE)  # so that there is time for another


def _check_part(found: tuple[int, int], expected: tuple[int, int]) -> None:
    if found != expected:
        raise ResponseError(
            f"the answer has {found[1]} bytes at {found[0]}, not {expected[1]} at {expected[0]}",
            transient=True,
        )


def _session(tls: SSLContext | None, requests: int, patience: float) -> ClientSession:
    with extra("http", "files on the web"):
        import aiohttp

    silence = _read_timeout(patience)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=requests, ssl=tls or True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence),
        headers={"User-Agent": "aiovblk", "Accept-Encoding": "identity"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        requote_redirect_url=False,  # it may be signed
    )
