"""Classify and log failed requests: rate-limited, one line for each new cause and its repeats.

What holds here:

* A new cause is logged at once: a bug with its traceback, an outage in one line.
* Repeats of the same cause are counted, and the count is logged after a pause that doubles each
  time: an outage of an hour is some ten lines, whatever the number of requests.
* The remembered causes and the lines are bounded: an endless variety of messages cannot fill a disk
  with logs.
* No failure of logging, or of an exception's own ``__str__``, keeps a request from being answered.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from types import TracebackType

from ..contract import not_awaitable_reason
from ..device import BlockDevice
from ..errors import OUTAGES
from ..protocol import Command, Request, errno_to_wire

logger = logging.getLogger("aiovblk")

MIN_PAUSE = 10.0
"""Seconds until the repeats of a cause are logged first; the pause doubles each time."""

MAX_PAUSE = 600.0
"""Seconds of the longest pause."""

MAX_CAUSES = 64
"""Most causes that are remembered; beyond that, the least recent one is forgotten."""

MAX_LINES = 16
"""Lines about new causes within six times :data:`MIN_PAUSE`; more are only counted."""

MAX_REASON = 300
"""Most characters of a reason."""

_HANDLERS = {
    int(Command.READ): "read",
    int(Command.WRITE): "write",
    int(Command.FLUSH): "flush",
    int(Command.TRIM): "trim",
    int(Command.WRITE_ZEROES): "write_zeroes",
    int(Command.BLOCK_STATUS): "extents",
    int(Command.CACHE): "cache",
}

_PACKAGE = __name__.partition(".")[0] + "."

# Numbers and identifiers differ from failure to failure of the same cause.
_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8,}|\d+")


class HandlerTimeoutError(TimeoutError):
    """A handler took longer than ``handler_timeout``."""


class ContractError(Exception):
    """A handler broke its contract; the message says how."""


@dataclass(frozen=True, slots=True)
class HandlerFailure:
    """The classification of an exception that a handler raised."""

    error: int
    """The error value of the reply."""
    reason: str
    """One line of text."""
    is_bug: bool
    """Whether it is a programming error, so that a traceback is logged."""


def classify(exc: BaseException, device: BlockDevice, request: Request) -> HandlerFailure:
    """Classify an exception of a handler: error value, reason, bug or outage. Never raises.

    Args:
        exc: the exception.
        device: the device whose handler raised it.
        request: the request that the handler was called for.

    """
    try:
        error = errno_to_wire(exc.errno) if isinstance(exc, OSError) else errno.EIO
        return HandlerFailure(error, _reason(exc, device, request), is_bug(exc, device))
    except Exception:  # its own methods may raise anything
        return HandlerFailure(errno.EIO, type(exc).__name__, True)


def is_bug(exc: BaseException, device: BlockDevice) -> bool:
    """Return whether an exception is a programming error, not an outage. Never raises."""
    try:
        return _is_bug(exc, device)
    except Exception:  # its own methods may raise anything
        return True


def _is_bug(exc: BaseException, device: BlockDevice) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return any(is_bug(each, device) for each in exc.exceptions)
    if isinstance(exc, OSError | KeyboardInterrupt | SystemExit):
        return False
    return not (
        any(isinstance(exc, each.outages) for each in _layers_of(device))
        or any(_full_name(kind) in OUTAGES for kind in type(exc).__mro__)
    )


def _layers_of(device: BlockDevice) -> Iterator[BlockDevice]:
    """Yield a device and the devices below it, by their ``inner`` attribute."""
    below: object = device
    while isinstance(below, BlockDevice):
        yield below
        below = getattr(below, "inner", None)


def _full_name(kind: type) -> str:
    """Return package and class; the module within the package is private to it, and left out."""
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


def _reason(exc: BaseException, device: BlockDevice, request: Request) -> str:
    if isinstance(exc, HandlerTimeoutError | ContractError):
        return join_lines(str(exc.args[-1]))
    if isinstance(exc, TypeError) and "await" in str(exc) and _is_own(exc.__traceback__):
        return join_lines(not_awaitable_reason(device, _HANDLERS[request.type]))
    return format_exception(exc)


def format_exception(exc: BaseException) -> str:
    """Return class and text of an exception in one line. Never raises."""
    try:
        text = f"{type(exc).__name__}: {exc}".removesuffix(": ")
    except Exception:  # its own methods may raise anything
        return type(exc).__name__
    if isinstance(exc, BaseExceptionGroup):
        text += f": {format_exception(exc.exceptions[0])}"
    return join_lines(text)


def join_lines(text: str) -> str:
    """Escape and truncate a text of any origin, so that it is safe in a log line or a terminal."""
    shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return shown if len(shown) <= MAX_REASON else shown[: MAX_REASON - 3] + "..."


def _last(traceback: TracebackType | None) -> TracebackType | None:
    """Return the innermost frame: where an exception was raised."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _is_own(traceback: TracebackType | None) -> bool:
    """Return whether an exception was raised in this package: where a handler was awaited."""
    last = _last(traceback)
    return last is not None and last.tb_frame.f_globals.get("__name__", "").startswith(_PACKAGE)


def format_request(request: Request) -> str:
    """Describe a request for the log: command, offset and length."""
    try:
        name = Command(request.type).name
    except ValueError:
        name = f"command {request.type}"
    return name if name == "FLUSH" else f"{name} at {request.offset}, {request.length} bytes,"


@dataclass(slots=True)
class _Cause:
    """A cause of failed requests, and its repeats since the last log line."""

    name: str
    reason: str
    reported_at: float
    """When it was logged last, in seconds of :func:`time.monotonic`."""
    pause: float
    repeats: int = 0
    """Requests that failed since then."""
    last_at: str = ""
    """The last of these requests, in words."""

    @property
    def due(self) -> float:
        """When its repeats are to be logged."""
        return self.reported_at + self.pause

    def is_over(self, now: float) -> bool:
        """Return whether it has not occurred for so long that the next failure is a new one."""
        return not self.repeats and now - self.reported_at > 2 * MAX_PAUSE


class FailureLog:
    """Log failures of requests, rate-limited for each cause; several connections may share it.

    Args:
        pause: seconds until the repeats of a cause are logged first.

    """

    def __init__(self, *, pause: float = MIN_PAUSE) -> None:
        self._pause = pause
        self._window = 6 * pause
        self._causes: OrderedDict[object, _Cause] = OrderedDict()
        self._others = 0  # failed requests whose cause was not logged
        self._window_began = -math.inf
        self._lines = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # when the timer goes off
        self._closed = False

    def report(
        self,
        name: str,
        what: str,
        failure: HandlerFailure,
        exc: BaseException,
        *,
        of: object = None,
    ) -> None:
        """Log a failure, or count it as a repeat. Never raises.

        Args:
            name: the device or the export, in words.
            what: what has failed, in words.
            failure: the result of :func:`classify`.
            exc: the exception; no reference to it is kept.
            of: a hashable key of the device or export, if its name may change.

        """
        try:
            self._report(name, what, failure, exc, name if of is None else of)
        except Exception:  # of a logging handler, say
            logger.debug("a failure could not be logged", exc_info=True)

    def report_bug(
        self, name: str, what: str, exc: BaseException, *, device: BlockDevice | None = None
    ) -> None:
        """Log with a traceback, or count, a failure that is not of a request.

        Without a traceback if it is an outage of ``device``.
        """
        with_traceback = device is None or is_bug(exc, device)
        failure = HandlerFailure(errno.EIO, format_exception(exc), with_traceback)
        self.report(name, what, failure, exc)

    def close(self) -> None:
        """Log all pending repeat counts now; after that nothing is logged later by a timer."""
        self._closed = True
        self._stop_timer()
        self._report_repeated(monotonic(), all_of_them=True)

    def _report(
        self, name: str, what: str, failure: HandlerFailure, exc: BaseException, of: object
    ) -> None:
        key = _key(of, failure.reason, exc)
        cause = self._causes.get(key)
        now = monotonic()
        if cause is not None and not cause.is_over(now):
            cause.repeats += 1
            cause.name, cause.last_at = name, what
            self._causes.move_to_end(key)
            self._schedule(cause.due, now)
        elif self._may_log(now):
            self._remember_cause(key, _Cause(name, failure.reason, now, self._pause))
            text, place = "%s: %s failed: %s", (name, what, failure.reason)
            if failure.is_bug:
                logger.error(text, *place, exc_info=exc)
            else:
                logger.warning(text, *place)
        else:
            self._others += 1
            self._schedule(self._window_began + self._window, now)

    def _remember_cause(self, key: object, cause: _Cause) -> None:
        self._causes[key] = cause
        if len(self._causes) > MAX_CAUSES:
            _, forgotten = self._causes.popitem(last=False)
            self._others += forgotten.repeats

    def _may_log(self, now: float) -> bool:
        if now - self._window_began >= self._window:
            self._window_began, self._lines = now, 0
        self._lines += 1
        return self._lines <= MAX_LINES

    def _schedule(self, due: float, now: float) -> None:
        if due < self._due and not self._closed:
            self._stop_timer()
            self._due = due
            self._timer = asyncio.get_running_loop().call_later(max(due - now, 0), self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, math.inf

    def _on_timer(self) -> None:
        self._stop_timer()
        now = monotonic()
        self._report_repeated(now)
        left = [each.due for each in self._causes.values() if each.repeats]
        if self._others:
            left.append(self._window_began + self._window)
        if left:
            self._schedule(min(left), now)

    def _report_repeated(self, now: float, *, all_of_them: bool = False) -> None:
        for cause in self._causes.values():
            if cause.repeats and (all_of_them or now >= cause.due):
                seconds = now - cause.reported_at
                logger.warning(
                    "%s: %d more failed in %.3g s, the last %s: %s",
                    cause.name,
                    cause.repeats,
                    seconds,
                    cause.last_at.removesuffix(","),
                    cause.reason,
                )
                cause.reported_at, cause.repeats = now, 0
                cause.pause = min(2 * cause.pause, MAX_PAUSE)
        if self._others and (all_of_them or now >= self._window_began + self._window):
            logger.warning("%d more requests failed, for other causes", self._others)
            self._others = 0


def _key(of: object, reason: str, exc: BaseException) -> object:
    """Return what failures of the same cause have in common: exception, text, place in the code."""
    last = _last(exc.__traceback__)
    where = None if last is None else (last.tb_frame.f_code.co_filename, last.tb_lineno)
    return of, _full_name(type(exc)), _VARIABLE.sub("#", reason), where


class Reporter:
    """Classify and log what the handlers of one device raise.

    Args:
        failures: the log; several connections may share it.
        device: the device whose handlers are called.
        where: the device node or the export, in words; empty if there is none yet.

    Attributes:
        where: as above; may be set.

    """

    __slots__ = ("_device", "_failures", "_first", "where")  # one for each client

    def __init__(self, failures: FailureLog, device: BlockDevice, where: str = "") -> None:
        self.where = self._first = where
        self._failures = failures
        self._device = device

    @property
    def name(self) -> str:
        """The name of the device in the log."""
        kind = type(self._device).__name__
        return f"{self.where} ({kind})" if self.where else kind

    def report(self, request: Request, exc: BaseException) -> HandlerFailure:
        """Classify and log what a handler raised. Never raises."""
        failure = classify(exc, self._device, request)
        self._failures.report(self.name, format_request(request), failure, exc, of=self._first)
        return failure
