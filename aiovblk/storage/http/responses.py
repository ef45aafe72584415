"""Parse responses to range requests, and classify errors: error number, retry, message."""

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
    """A response that cannot be used.

    Args:
        reason: for a message that begins with the name of the file.
        error: the system's error number.
        transient: whether to retry the request.

    """

    def __init__(self, reason: str, error: int = errno.EIO, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.errno = error
        self.transient = transient


class ChangedError(ResponseError):
    """The file is another version than the one that was opened."""

    def __init__(self) -> None:
        super().__init__("it has changed on the server since it was opened; open it again")


def check_status(response: ClientResponse) -> None:
    """Verify that a response is a part of the file (206 Partial Content).

    Raises:
        ChangedError: the server says that the file has changed.
        ResponseError: it is another response.

    """
    status = response.status
    if status == HTTPStatus.PARTIAL_CONTENT:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.strip().lower() != "identity":
            raise ResponseError(
                f"the server sends it encoded ({quote(encoding, 40)}), so no part is exact;"
                " have it send this file without Content-Encoding"
            )
        return
    if status == HTTPStatus.PRECONDITION_FAILED:
        raise ChangedError
    if status == HTTPStatus.OK:
        reason = "the server does not serve parts of it (ranges); download it, and use file:PATH"
        raise ResponseError(reason, errno.EOPNOTSUPP)
    transient = status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    reason = f"the server says {_status_text(status)}"
    raise ResponseError(reason, _ERRNO.get(status, errno.EIO), transient=transient)


def _status_text(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def read_range(response: ClientResponse) -> tuple[int, int, int | None]:
    """Parse Content-Range: return where the part begins, its bytes, and those of the file or None.

    Raises:
        ResponseError: there is no such header, or it is invalid.

    """
    text = response.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(text.strip())
    if found is None:
        raise ResponseError(
            "the response does not say which part it has (Content-Range)", transient=True
        )
    first, last, total = found.groups()
    return int(first), int(last) + 1 - int(first), None if total == "*" else int(total)


async def read_body(response: ClientResponse, length: int) -> bytes:
    """Return the body of a response; stop reading one byte behind ``length``.

    Raises:
        ResponseError: it is not ``length`` bytes.

    """
    try:
        data = await response.content.readexactly(length)
    except asyncio.IncompleteReadError as exc:
        reason = f"the response has {len(exc.partial)} bytes, not {length}"
        raise ResponseError(reason, transient=True) from None
    if await response.content.read(1):
        raise ResponseError(f"the response has more than {length} bytes", transient=True)
    return data


def classify_error(failure: Exception, name: str) -> tuple[OSError, bool]:
    """Return an exception of a request as an OSError without secrets, and whether to retry."""
    if isinstance(failure, ResponseError):
        return StorageError(failure.errno, f"{name}: {failure}"), failure.transient
    reason, transient = _of_connection(failure)
    return StorageError(errno.EIO, f"{name}: {reason}"), transient


def _of_connection(failure: Exception) -> tuple[str, bool]:
    """Return the reason, and whether to retry, of an exception of aiohttp."""
    # Without the exception's own text, unless its origin is known: most have the whole URL in it.
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
            # asyncio's text says only that it failed; a resolver's numbers are no system errors.
            number = error.errno or 0
            why = os.strerror(number) if number > 0 else quote(error.strerror or str(error))
            return f"no connection to {failure.host}:{failure.port}: {why}", True
        case aiohttp.ClientPayloadError():
            return "the response was cut off", True
        case aiohttp.ClientConnectionError() | OSError():
            return "the connection was lost", True
        case aiohttp.TooManyRedirects():
            return "the server redirects in circles", False
        case aiohttp.InvalidURL() | aiohttp.RedirectClientError():
            return "the server redirects to an invalid URL", False
        case aiohttp.ClientResponseError():
            return "the server does not speak HTTP", False
    return f"the request failed ({type(failure).__name__})", False
