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

from ...extras import extra
from ..patience import Notices, repeat
from .address import Address
from .answers import AnswerError, ChangedError, check_status, explained, read_body, read_range
from .version import Version

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiohttp import ClientResponse, ClientSession

T = TypeVar("T")

Take: TypeAlias = "Callable[[ClientResponse], Awaitable[T]]"

logger = logging.getLogger("aiovblk")

_FIRST = 512  # bytes of the first request
_REDIRECTS = 10
_MIRRORS = 8  # to which a request is redirected before it fails
_SILENCE = 30.0  # seconds after which a connection without a byte is given up, at most
_SLOWEST = 4096  # bytes a second in which an answer must come on the whole


class WebFile:
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
        patience: seconds; see :data:`.patience.PATIENCE`.

    """

    def __init__(
        self,
        address: Address,
        authorization: str | None,
        session: ClientSession,
        requests: int,
        patience: float,
    ) -> None:
        self.name = address.name
        self.version = Version(0)
        self._url = address.url
        self._authorization = authorization
        self._session = session
        self._turns = asyncio.Semaphore(requests)
        self._patience = patience
        self._notices = Notices()
        self._change_told = False
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
        address = Address.parse(url)
        session = _session(tls, requests, patience)
        authorization = authorization or address.authorization
        file = cls(address, authorization, session, requests, patience)
        try:
            await file._repeat(file._look)
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
        explain = partial(explained, name=self.name)
        return await repeat(request, explain, patience=self._patience, notices=self._notices)

    async def _look(self) -> None:
        """Find out which version there is."""
        await self._wherever(0, _FIRST, self._take_version)

    async def _get(self, offset: int, length: int) -> bytes:
        try:
            return await self._get_anywhere(offset, length)
        except ChangedError as exc:
            if not self._change_told:
                self._change_told = True
                logger.error("%s: %s", self.name, exc)
            raise

    async def _get_anywhere(self, offset: int, length: int) -> bytes:
        take = partial(self._take_part, offset, length)
        mirror = self._mirror
        if mirror is None:
            return await self._wherever(offset, length, take)
        try:
            return await self._ask(mirror.url, offset, length, mirror.version, take)
        except Exception as exc:
            logger.debug("%s: a mirror has failed: %s", self.name, explained(exc, self.name)[0])
            failure = exc
        try:
            return await self._wherever(offset, length, take)
        except AnswerError as exc:
            if exc.passes:
                raise
            raise failure from None  # which may pass

    async def _wherever(self, offset: int, length: int, take: Take[T]) -> T:
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
                return await self._ask(self._url, offset, length, version, note)
            except AnswerError:
                # Another mirror may have what this one lacks; one that was asked before has not.
                if place in {"", _place(self._url), *tried} or len(tried) == _MIRRORS:
                    raise
                tried.add(place)

    async def _take_version(self, response: ClientResponse) -> None:
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
        self.version, self._first = version, _place(str(response.url))
        self._stay(response, version)

    async def _take_part(self, offset: int, length: int, response: ClientResponse) -> bytes:
        version = self._check_version(response)
        _check_part(read_range(response)[:2], (offset, length))
        data = await read_body(response, length)
        self._stay(response, version)
        return data

    def _check_version(self, response: ClientResponse) -> Version:
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise ChangedError  # it has shrunk
        check_status(response)
        found = Version.of(response.headers, read_range(response)[2] or self.version.size)
        place, mirror = _place(str(response.url)), self._mirror
        if place == self._first:
            same = self.version.is_same(found)
        elif mirror is not None and place == _place(mirror.url):
            same = mirror.version.is_same(found)
        else:
            same = self.version.is_same_elsewhere(found)
        if not same:
            raise ChangedError
        return found

    def _stay(self, response: ClientResponse, version: Version) -> None:
        """Make the next requests where this one has led to."""
        if response.history:
            self._mirror = Mirror(str(response.url), version)

    async def _ask(
        self, url: str, offset: int, length: int, version: Version | None, take: Take[T]
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
        limit = 2 * _silence(self._patience) + length / _SLOWEST
        async with self._turns:
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
                        raise AnswerError("the server redirects from https to http")
                    return await take(response)
            except TimeoutError:
                if not whole.expired():
                    raise
                reason = f"the answer takes longer than {limit:.0f} s for {length} bytes"
                raise AnswerError(reason, passes=True) from None


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where a redirect has led to."""

    url: str
    version: Version
    """In its own words."""


def _place(url: str) -> str:
    """Where a file is, whatever the signature of the moment."""
    return url.partition("?")[0]


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _silence(patience: float) -> float:
    return min(patience / 2, _SILENCE)  # so that there is time for another


def _check_part(found: tuple[int, int], expected: tuple[int, int]) -> None:
    if found != expected:
        raise AnswerError(
            f"the answer has {found[1]} bytes at {found[0]}, not {expected[1]} at {expected[0]}",
            passes=True,
        )


def _session(tls: SSLContext | None, requests: int, patience: float) -> ClientSession:
    with extra("http", "files on the web"):
        import aiohttp

    silence = _silence(patience)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=requests, ssl=tls or True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence),
        headers={"User-Agent": "aiovblk", "Accept-Encoding": "identity"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        requote_redirect_url=False,  # it may be signed
    )
