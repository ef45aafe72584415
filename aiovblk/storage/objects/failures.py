"""What the package ``obstore`` raises, and what it means.

It is judged by the store's answer, which stands in the exception's text, and not by the
exception's class: a list that is refused and a bucket in another region are GenericError there, as
is a server that is down. Of the text only what is known is shown: the rest is a dump of request and
answer, where a query may hold a signature.
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
    """One failed request."""

    error: OSError
    """What is raised, without secrets."""
    transient: bool
    """Whether the same request may succeed later."""
    credentials: bool = False
    """Whether it may succeed with other credentials."""
    expired: bool = False
    """Whether that is because they were good until now."""


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """What a store has answered."""

    status: int
    code: str
    """S3's (Azure's, GCS's) own; empty if it gave none."""
    message: str
    region: str

    @classmethod
    def find(cls, text: str) -> ErrorResponse | None:
        """Read it from the text of an exception of obstore."""
        found = _STATUS.search(text)
        if found is None:
            return None
        body = text[found.end() :]
        return cls(int(found[1]), *(_element(name, body) for name in ("Code", "Message", "Region")))

    def __str__(self) -> str:
        """Say it in one line."""
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
"""Codes that tell that credentials were good, and are to be renewed."""

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

# Statuses and codes that a repetition may change, though they begin with a 4.
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
    "NoSuchBucket": "make the bucket first, or correct its name",
    "ContainerNotFound": "make the container first, or correct its name",
}

_VARIABLES = {
    "AWS": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (with aiovblk[aws])",
    "Google Cloud": "GOOGLE_APPLICATION_CREDENTIALS",
    "Azure": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

# Where credentials are asked for that are given nowhere else: a cloud's machine has such a server.
_METADATA = {
    "/metadata/identity/oauth2/token": "Azure",
    "/computeMetadata/": "Google Cloud",
    "/latest/api/token": "AWS",
    "/latest/meta-data/": "AWS",
}

_PROVIDER = "External AWS credential provider"


def classify(
    failure: Exception, where: str, *, known: bool = False, absent: bool = True
) -> StoreFailure:
    """Find out what an exception of obstore means.

    Args:
        failure: the exception.
        where: what was asked for, for the message.
        known: whether the store has answered before, so that credentials and address are right.
        absent: whether the object may be missing; else a 404 is about something larger.

    """
    text, _, details = str(failure).partition("\n\nDebug source:")
    if isinstance(failure, FileExistsError):  # ours: obstore makes its own of every 409
        return StoreFailure(FileExistsError(errno.EEXIST, f"{where}: there is one already"), False)
    return (
        _of_credentials(text, where, known)
        or _of_response(text, where, absent)
        or _of_connection(text, details, where)
        or _of_system(details, where)
        or _of_class(failure, text, where)
    )


def _of_credentials(text: str, where: str, known: bool) -> StoreFailure | None:
    """Where there are none, the reason is about another server than the store."""
    for part, cloud in _METADATA.items():
        if part in text:
            reason = f"no credentials: set {_VARIABLES[cloud]}; this machine has none of {cloud}'s"
            return StoreFailure(PermissionError(errno.EACCES, f"{where}: {reason}"), known)
    _, found, reason = text.partition(f"{_PROVIDER}: ")
    if found:
        told = quote(reason.strip())
        error = PermissionError(errno.EACCES, f"{where}: no credentials: {told}")
        return StoreFailure(error, known)
    return None


def _of_response(text: str, where: str, absent: bool) -> StoreFailure | None:
    if "redirect without LOCATION" in text:  # the answer itself is not told
        reason = f"{where}: the store redirects to another region; {_region('')}"
        return StoreFailure(StorageError(errno.EIO, reason), False)
    answer = ErrorResponse.find(text)
    if answer is None:
        return None
    reason = f"{where}: the store says {answer}"
    if answer.code in _WRONG_REGION:
        return StoreFailure(StorageError(errno.EIO, f"{reason}; {_region(answer.region)}"), False)
    if advice := _ADVICE.get(answer.code):
        reason += f"; {advice}"
    credentials = (
        answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        or answer.code in _OTHER_CREDENTIALS
    )
    expired = answer.code in EXPIRED
    return StoreFailure(_error(answer, reason, absent), _is_transient(answer), credentials, expired)


def _region(region: str) -> str:
    return f"set AWS_REGION to the region that the bucket is in{region and f', {region}'}"


def _error(answer: ErrorResponse, reason: str, absent: bool) -> OSError:
    if answer.code in _FULL or answer.status == HTTPStatus.INSUFFICIENT_STORAGE:
        return OSError(errno.ENOSPC, reason)
    if answer.code in _OTHER_CREDENTIALS:
        return PermissionError(errno.EACCES, reason)
    match answer.status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return PermissionError(errno.EACCES, reason)
        case HTTPStatus.NOT_FOUND if absent and answer.code not in _NO_BUCKET:
            return FileNotFoundError(errno.ENOENT, reason)
        case HTTPStatus.NOT_FOUND:
            # No FileNotFoundError, which means that a disk is not there, and may be made.
            return StorageError(errno.ENOENT, reason)
    return OSError(errno.EIO, reason)


def _is_transient(answer: ErrorResponse) -> bool:
    if answer.code in _FULL or answer.code in _OTHER_CREDENTIALS:
        return False
    if answer.code in _TRANSIENT_CODES:
        return True
    if answer.status in _TRANSIENT:
        return True
    server = answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return server and answer.status not in _PERMANENT


_CERTIFICATES = {
    "UnknownIssuer": "nobody who is trusted has signed it; AWS_CA_BUNDLE names whom to trust",
    "NotValidForName": "it is for another host",
    "NotValidForNameContext": "it is for another host",
    "Expired": "it has expired",
    "ExpiredContext": "it has expired",
    "NotValidYet": "it is not valid yet",
    "NotValidYetContext": "it is not valid yet",
}

_NETWORK = "HTTP error"  # by which obstore begins what is no answer


def _of_connection(text: str, details: str, where: str) -> StoreFailure | None:
    if _NETWORK not in text and "HttpError" not in details:
        return None
    reason, number = _permanent(details)
    if reason:
        return StoreFailure(StorageError(number, f"{where}: {reason}"), False)
    return StoreFailure(OSError(errno.EIO, f"{where}: {_transient(text, details)}"), True)


def _permanent(details: str) -> tuple[str, int]:
    """What no repetition changes: why, and the error number."""
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


# What is wrong with a folder, or with the disk that it is on, stays so for a minute.
_SYSTEM = re.compile(r"\bOs \{\s*code: (\d+)")


def _of_system(details: str, where: str) -> StoreFailure | None:
    found = _SYSTEM.search(details)
    if found is None:
        return None
    number = int(found[1])
    passes = number in (errno.EINTR, errno.EAGAIN, errno.EBUSY)
    return StoreFailure(OSError(number, f"{where}: {os.strerror(number)}"), passes)


def _of_class(failure: Exception, text: str, where: str) -> StoreFailure:
    from obstore import exceptions

    told = f"{where}: {_first_line(text) or type(failure).__name__}"
    if type(failure).__name__ == "RustPanic":  # with an address, as far as is known
        return StoreFailure(
            StorageError(errno.EIO, f"{told}; is the store's address right?"), False
        )
    if isinstance(failure, FileNotFoundError):
        return StoreFailure(FileNotFoundError(errno.ENOENT, told), False)
    if isinstance(failure, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return StoreFailure(PermissionError(errno.EACCES, told), False, credentials=True)
    if isinstance(failure, OSError):
        return StoreFailure(OSError(failure.errno or errno.EIO, told), False)
    passes = isinstance(failure, exceptions.GenericError | exceptions.JoinError)
    return StoreFailure(OSError(errno.EIO, told), passes)


def _first_line(text: str) -> str:
    # A query may hold a signature.
    return quote(re.sub(r"\?\S*", "?...", next(iter(text.splitlines()), "")))
