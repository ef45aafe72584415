"""Events of requests that fail, with the reason why they were refused."""

from __future__ import annotations

import errno

from ..events import RequestFailed
from ..protocol import Request
from .stats import command_name

REFUSAL_REASONS = {
    errno.EPERM: "refused: the device is read-only",
    errno.ENOSPC: "refused: beyond the end of the device",
    errno.EINVAL: "refused: not aligned, beyond the end, or not negotiated",
}
"""Why a request was refused, by the error that :meth:`.RequestValidator.error_for` returned."""


def failed_event(request: Request, error: int, reason: str) -> RequestFailed:
    """Return the event of a request that fails; without a reason it was refused."""
    reason = reason or REFUSAL_REASONS.get(error, REFUSAL_REASONS[errno.EINVAL])
    return RequestFailed(*event_fields(request), error, reason=reason)


def event_fields(request: Request) -> tuple[str, int, int]:
    """Return the first fields of a :class:`RequestEvent`: command, offset, length."""
    return command_name(request.type), request.offset, request.length
