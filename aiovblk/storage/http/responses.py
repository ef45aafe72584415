"""What a web server's answers mean."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from ...errors import StorageError
from ...text import quote

if TYPE_CHECKING:
    from aiohttp import ClientResponse

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.IGNORECASE)

_ERRNO: dict[int, int] = {
    HTTPStatus.UNAUTHORIZED: errno.EACCES,
    HTTPStatus.FORBIDDEN: errno.EACCES,
    HTTPStatus.NOT_FOUND: errno.ENOENT,
    HTTPStatus.GONE: errno.ENOENT,
}

_TRANSIENT = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class ResponseError(Exception):
    """An answer that is of no use.

    Args:
        reason: why, in words that follow the name of the file.
        error: the system's error number.
        transient: whether the next one may be better.

    """

    def __init__(self, reason: str, error: int = errno.EIO, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.errno = error
        self.transient = transient


class ChangedError(ResponseError):
    """The file is not the one that was opened."""

    def __init__(self) -> None:
        super().__init__("it has changed on the server since it was opened; open it again")


def check_status(response: ClientResponse) -> None:
    """See to it that an answer is a part of the file.

    Raises:
        ChangedError: the server says that it has changed.
        AnswerError: it is something else.

    """
    status = response.status
    if status == HTTPStatus.PARTIAL_CONTENT:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.strip().lower() != "identity":
            raise ResponseError(
                f"the server sends it encoded ({quote(encoding, 40)}), so no part is exact"
            )
        return
    if status == HTTPStatus.PRECONDITION_FAILED:
        raise ChangedError
    if status == HTTPStatus.OK:
        reason = "the server does not serve parts of it (ranges); download it, and use file:PATH"
        raise ResponseError(reason, errno.EOPNOTSUPP)
    passes = status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    reason = f"the server says {_status_text(status)}"
    raise ResponseError(reason, _ERRNO.get(status, errno.EIO), transient=passes)


def _status_text(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def read_range(response: ClientResponse) -> tuple[int, int, int | None]:
    """Return where the part in an answer begins, its bytes, and those of the file, if told.

    Raises:
        AnswerError: it does not tell.

    """
    text = response.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(text.strip())
    if found is None:
        raise ResponseError("the answer does not tell which part of it it has", transient=True)
    first, last, total = found.groups()
    return int(first), int(last) + 1 - int(first), None if total == "*" else int(total)


async def read_body(response: ClientResponse, length: int) -> bytes:
    """Return what an answer holds, and never read much more.

    Raises:
        AnswerError: it is not ``length`` bytes.

    """
    try:
        data = await response.content.readexactly(length)
    except asyncio.IncompleteReadError as exc:
        reason = f"the answer has {len(exc.partial)} bytes, not {length}"
        raise ResponseError(reason, transient=True) from None
    if await response.content.read(1):
        raise ResponseError(f"the answer has more than {length} bytes", transient=True)
    return data


def classify_error(failure: Exception, name: str) -> tuple[OSError, bool]:
    """Return what a request has raised as an OSError without secrets, and whether it may pass."""
    if isinstance(failure, ResponseError):
        return StorageError(failure.errno, f"{name}: {failure}"), failure.transient
    reason, passes = _of_connection(failure)
    return StorageError(errno.EIO, f"{name}: {reason}"), passes


def _of_connection(failure: Exception) -> tuple[str, bool]:
    # Only words of which it is known where they come from: most have the whole URL.
    import aiohttp

    match failure:
        case TimeoutError():
            return "the server does not answer", True
        case aiohttp.ClientConnectorCertificateError():
            why = quote(str(failure.certificate_error))
            return f"the server's certificate is refused: {why}", False
        case aiohttp.ClientSSLError():
            why = quote(str(failure.os_error))
            return f"no TLS with {failure.host}:{failure.port}: {why}", False
        case aiohttp.ClientConnectorError(os_error=error):
            # asyncio says only that it failed; a resolver's numbers are none of the system's.
            number = error.errno or 0
            why = os.strerror(number) if number > 0 else quote(error.strerror or str(error))
            return f"no connection to {failure.host}:{failure.port}: {why}", True
        case aiohttp.ClientPayloadError():
            return "the answer was cut off", True
        case aiohttp.ClientConnectionError() | OSError():
            return "the connection was lost", True
        case aiohttp.TooManyRedirects():
            return "the server redirects in circles", False
        case aiohttp.InvalidURL() | aiohttp.RedirectClientError():
            return "the server redirects to what is no address", False
        case aiohttp.ClientResponseError():
            return "the server does not speak HTTP", False
    return f"the request failed ({type(failure).__name__})", False
