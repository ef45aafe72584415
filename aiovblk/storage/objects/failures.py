"""Classify failed requests of the package ``obstore``: error number, retry, credentials, advice.

A failure is judged by the store's response, which is in the exception's text, and not by the
exception's class: a list that is refused and a bucket in another region are GenericError there, as
is a server that is down.

Only known parts of the text are shown: the rest is a dump of request and response, where a query
may hold a signature.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from html import unescape
from http import HTTPStatus

from ...errors import StorageError
from ...text import quote


@dataclass(frozen=True, slots=True)
class StoreFailure:
    """What a failed request means."""

    error: OSError
    """To be raised; it has no secrets."""
    transient: bool
    """Whether the same request may succeed later, so that it is retried."""
    credentials: bool = False
    """Whether it may succeed with renewed credentials."""
    expired: bool = False
    """Whether the credentials were valid, and have expired."""


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An error response of a store."""

    status: int
    code: str
    """S3's (Azure's, GCS's) own, ``NoSuchBucket`` say; empty if there is none."""
    message: str
    region: str

    @classmethod
    def find(cls, text: str) -> ErrorResponse | None:
        """Parse it from the text of an exception of obstore; None without a response."""
        found = _STATUS.search(text)
        if found is None:
            return None
        body = text[found.end() :]
        return cls(int(found[1]), *(_element(name, body) for name in ("Code", "Message", "Region")))

    def __str__(self) -> str:
        """Return it in one line, for messages."""
        try:
            status = f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            status = str(self.status)
        return ": ".join(each for each in (status, self.code, self.message) if each)


_STATUS = re.compile(r"\bstatus code: (\d{3})\b")


def _element(name: str, body: str) -> str:
    found = re.search(f"<{name}>([^<]*)</{name}>", body)
    return quote(unescape(found[1]).strip()) if found else ""


EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
"""Codes of credentials that were valid, and are to be renewed."""

_OTHER_CREDENTIALS = EXPIRED | {"InvalidToken", "InvalidAccessKeyId", "AuthenticationFailed"}

_WRONG_REGION = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "IncorrectEndpoint",
        "PermanentRedirect",
    }
)

_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})

_FULL = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull"})

# Statuses of the 4xx class, and codes, that are retried.
_TRANSIENT = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
        HTTPStatus.TOO_EARLY,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)
_TRANSIENT_CODES = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "SlowDown"})
_PERMANENT = frozenset({HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED})

_ADVICE: dict[str, str] = {
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID, or the profile",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY, or the profile",
    "ExpiredToken": "the credentials have expired; get new ones",
    "RequestTimeTooSkewed": "set this machine's clock",
    "NoSuchBucket": "create the bucket first, or correct its name",
    "ContainerNotFound": "create the container first, or correct its name",
}

_VARIABLES = {
    "AWS": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (with aiovblk[aws])",
    "Google Cloud": "GOOGLE_APPLICATION_CREDENTIALS",
    "Azure": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

# Paths of the metadata service, which only a cloud's machine has. obstore asks it for credentials
# when there are none in the environment.
_METADATA = {
    "/metadata/identity/oauth2/token": "Azure",
    "/computeMetadata/": "Google Cloud",
    "/latest/api/token": "AWS",
    "/latest/meta-data/": "AWS",
}

_PROVIDER = "External AWS credential provider"


def classify(
    failure: Exception, where: str, *, known: bool = False, may_be_absent: bool = True
) -> StoreFailure:
    """Return what an exception of obstore means: what to raise, and whether to retry.

    Args:
        failure: the exception.
        where: the object or folder of the request, for the message.
        known: whether the store has answered before, so that credentials and address are right.
        may_be_absent: whether a 404 means that the object is missing; otherwise it is about
            something larger, such as the bucket.

    """
    text, _, details = str(failure).partition("\n\nDebug source:")
    if isinstance(failure, FileExistsError):  # ours: obstore has another class, of every 409
        return StoreFailure(FileExistsError(errno.EEXIST, f"{where}: it exists already"), False)
    return (
        _of_credentials(text, where, known)
        or _of_response(text, where, may_be_absent)
        or _of_connection(text, details, where)
        or _of_system(details, where)
        or _of_class(failure, text, where)
    )


# What obstore says of a ranged GET in memory, and in a local folder; other stores respond with 416.
_OUT_OF_RANGE = re.compile(
    "Generic (?:InMemory|LocalFileSystem) error: (?:Invalid range|Requested range was invalid)"
)


def is_beyond_end(failure: Exception) -> bool:
    """Whether a ranged GET has failed because the object ends before the range begins."""
    response = ErrorResponse.find(str(failure))
    if response is None:
        return _OUT_OF_RANGE.match(str(failure)) is not None
    return response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


def _of_credentials(text: str, where: str, known: bool) -> StoreFailure | None:
    """Judge a lack of credentials; the exception is about another server than the store."""
    for part, cloud in _METADATA.items():
        if part in text:
            reason = f"no credentials: set {_VARIABLES[cloud]}; this machine has none of {cloud}'s"
            return StoreFailure(PermissionError(errno.EACCES, f"{where}: {reason}"), known)
    _, found, reason = text.partition(f"{_PROVIDER}: ")
    if found:
        error = PermissionError(errno.EACCES, f"{where}: no credentials: {quote(reason.strip())}")
        return StoreFailure(error, known)
    return None


def _of_response(text: str, where: str, may_be_absent: bool) -> StoreFailure | None:
    """Judge the store's error response."""
    if "redirect without LOCATION" in text:  # obstore drops the response itself
        reason = f"{where}: the store redirects to another region; {_region('')}"
        return StoreFailure(StorageError(errno.EIO, reason), False)
    response = ErrorResponse.find(text)
    if response is None:
        return None
    reason = f"{where}: the store says {response}"
    if response.code in _WRONG_REGION:
        return StoreFailure(StorageError(errno.EIO, f"{reason}; {_region(response.region)}"), False)
    if advice := _ADVICE.get(response.code):
        reason += f"; {advice}"
    credentials = (
        response.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        or response.code in _OTHER_CREDENTIALS
    )
    expired = response.code in EXPIRED
    return StoreFailure(
        _error(response, reason, may_be_absent), _is_transient(response), credentials, expired
    )


def _region(region: str) -> str:
    return f"set AWS_REGION to the region that the bucket is in{region and f', {region}'}"


def _error(response: ErrorResponse, reason: str, may_be_absent: bool) -> OSError:
    if response.code in _FULL or response.status == HTTPStatus.INSUFFICIENT_STORAGE:
        return OSError(errno.ENOSPC, reason)
    if response.code in _OTHER_CREDENTIALS:
        return PermissionError(errno.EACCES, reason)
    match response.status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return PermissionError(errno.EACCES, reason)
        case HTTPStatus.NOT_FOUND if may_be_absent and response.code not in _NO_BUCKET:
            return FileNotFoundError(errno.ENOENT, reason)
        case HTTPStatus.NOT_FOUND:
            # No FileNotFoundError: that means that there is no disk, so that one may be created.
            return StorageError(errno.ENOENT, reason)
    return OSError(errno.EIO, reason)


def _is_transient(response: ErrorResponse) -> bool:
    if response.code in _FULL or response.code in _OTHER_CREDENTIALS:
        return False
    if response.code in _TRANSIENT_CODES:
        return True
    if response.status in _TRANSIENT:
        return True
    server = response.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return server and response.status not in _PERMANENT


_CERTIFICATES = {
    "UnknownIssuer": "its issuer is not trusted; name a file of CAs to trust in AWS_CA_BUNDLE",
    "NotValidForName": "it is for another host",
    "NotValidForNameContext": "it is for another host",
    "Expired": "it has expired",
    "ExpiredContext": "it has expired",
    "NotValidYet": "it is not valid yet",
    "NotValidYetContext": "it is not valid yet",
}

_NETWORK = "HTTP error"  # the beginning of obstore's text where there was no response


def _of_connection(text: str, details: str, where: str) -> StoreFailure | None:
    """Judge a connection that failed: by name resolution, TCP, TLS, or a timeout."""
    if _NETWORK not in text and "HttpError" not in details:
        return None
    reason, number = _permanent(details)
    if reason:
        return StoreFailure(StorageError(number, f"{where}: {reason}"), False)
    return StoreFailure(OSError(errno.EIO, f"{where}: {_transient(text, details)}"), True)


def _permanent(details: str) -> tuple[str, int]:
    """Return the reason, and an error number, of what no retry changes; an empty one if it may."""
    if found := re.search(r"InvalidCertificate\(\s*(\w+)", details):
        why = _CERTIFICATES.get(found[1], found[1])
        return f"the store's certificate is refused: {why}", errno.EACCES
    if re.search(r"InvalidMessage\(\s*InvalidContentType", details):
        return (
            "the store does not speak TLS: its address begins with http:, not https:",
            errno.EPROTO,
        )
    if "BadScheme" in details:
        return (
            "the store's address does not begin with https:, or http: is not allowed",
            errno.EINVAL,
        )
    return "", 0


def _transient(text: str, details: str) -> str:
    if found := re.search(r"\bcode: (\d+),", details):
        return f"no connection to the store: {os.strerror(int(found[1]))}"
    if '"dns error"' in details:
        found = re.search(r'error: "(?:failed to lookup address information: )?([^"]*)"', details)
        return f"no connection to the store: {quote(found[1]) if found else 'unknown host'}"
    if "TimedOut" in details or "Timeout" in details:
        return "the store does not answer"
    return _first_line(text)


# An error of a local folder, or of the file system that it is on.
_SYSTEM = re.compile(r"\bOs \{\s*code: (\d+)")


def _of_system(details: str, where: str) -> StoreFailure | None:
    found = _SYSTEM.search(details)
    if found is None:
        return None
    number = int(found[1])
    # Others stay so for a minute, the retry timeout.
    transient = number in (errno.EINTR, errno.EAGAIN, errno.EBUSY)
    return StoreFailure(OSError(number, f"{where}: {os.strerror(number)}"), transient)


def _of_class(failure: Exception, text: str, where: str) -> StoreFailure:
    from obstore import exceptions

    reason = f"{where}: {_first_line(text) or type(failure).__name__}"
    if type(failure).__name__ == "RustPanic":  # as far as is known, always for an endpoint
        return StoreFailure(
            StorageError(errno.EIO, f"{reason}; is the store's address right?"), False
        )
    if isinstance(failure, FileNotFoundError):
        return StoreFailure(FileNotFoundError(errno.ENOENT, reason), False)
    if isinstance(failure, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return StoreFailure(PermissionError(errno.EACCES, reason), False, credentials=True)
    if isinstance(failure, OSError):
        return StoreFailure(OSError(failure.errno or errno.EIO, reason), False)
    transient = isinstance(failure, exceptions.GenericError | exceptions.JoinError)
    return StoreFailure(OSError(errno.EIO, reason), transient)


def _first_line(text: str) -> str:
    # Without queries, which may hold a signature.
    return quote(re.sub(r"\?\S*", "?...", next(iter(text.splitlines()), "")))
