"""Why requests fail: one line in the log for each new cause, and how often it came again.

What holds here:

* A cause that is new is told at once: a bug with its traceback, an outage in one line.
* The same cause again is counted, and told of after a pause that doubles each time: an outage of
  an hour is some ten lines, whatever the number of requests.
* What is remembered is bounded, and so are the lines: causes without end (texts that differ each
  time) are no way to fill a disk with logs.
* No failure of the log, or of an exception's own ``__str__``, costs a request its answer.
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
"""Seconds after which it is told how often a cause came again; each time it is twice as long."""

MAX_PAUSE = 600.0
"""Seconds of the longest of these pauses."""

MAX_CAUSES = 64
"""Causes that are remembered at once; of more, the one that came last is forgotten first."""

MAX_LINES = 16
"""Lines about new causes within six times MIN_PAUSE; more are only counted."""

MAX_REASON = 300
"""Characters of a reason."""

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

# Numbers and what looks like identifiers differ each time; the cause is the same.
_VARIABLE = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8,}|\d+")


class HandlerTimeoutError(TimeoutError):
    """A handler took longer than ``handler_timeout``."""


class ContractError(Exception):
    """A handler has ended as none may; the text says how."""


@dataclass(frozen=True, slots=True)
class HandlerFailure:
    """What the exception of a handler comes to."""

    error: int
    """The error value of the reply."""
    reason: str
    """In words, in one line."""
    is_bug: bool
    """Whether it is a mistake in a program, which a traceback helps to find."""


def classify(exc: BaseException, device: BlockDevice, request: Request) -> HandlerFailure:
    """What a handler's exception comes to; never raises.

    Args:
        exc: what was raised.
        device: whose handler it was.
        request: which it was called for.

    """
    try:
        error = errno_to_wire(exc.errno) if isinstance(exc, OSError) else errno.EIO
        return HandlerFailure(error, _reason(exc, device, request), is_bug(exc, device))
    except Exception:  # its own methods may raise anything
        return HandlerFailure(errno.EIO, type(exc).__name__, True)


def is_bug(exc: BaseException, device: BlockDevice) -> bool:
    """Whether a mistake in a program shows, which a traceback helps to find; never raises."""
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
        any(isinstance(exc, each.outages) for each in _layer_names(device))
        or any(_full_name(kind) in OUTAGES for kind in type(exc).__mro__)
    )


def _layer_names(device: BlockDevice) -> Iterator[BlockDevice]:
    """A device, and those that it lies on, as far as it tells."""
    below: object = device
    while isinstance(below, BlockDevice):
        yield below
        below = getattr(below, "inner", None)


def _full_name(kind: type) -> str:
    """Package and class: where within a package it is defined is nobody's business."""
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


def _reason(exc: BaseException, device: BlockDevice, request: Request) -> str:
    if isinstance(exc, HandlerTimeoutError | ContractError):
        return join_lines(str(exc.args[-1]))
    if isinstance(exc, TypeError) and "await" in str(exc) and _is_own(exc.__traceback__):
        return join_lines(not_awaitable_reason(device, _HANDLERS[request.type]))
    return format_exception(exc)


def format_exception(exc: BaseException) -> str:
    """Class and text of an exception, in one line; never raises."""
    try:
        text = f"{type(exc).__name__}: {exc}".removesuffix(": ")
    except Exception:  # what its own methods raise
        return type(exc).__name__
    if isinstance(exc, BaseExceptionGroup):
        text += f": {format_exception(exc.exceptions[0])}"
    return join_lines(text)


def join_lines(text: str) -> str:
    """A text, which may come from anywhere, as it may be shown in a terminal."""
    shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return shown if len(shown) <= MAX_REASON else shown[: MAX_REASON - 3] + "..."


def _last(traceback: TracebackType | None) -> TracebackType | None:
    """Where an exception was raised."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback


def _is_own(traceback: TracebackType | None) -> bool:
    """Whether it was raised in this package: where the result of a handler was awaited."""
    last = _last(traceback)
    return last is not None and last.tb_frame.f_globals.get("__name__", "").startswith(_PACKAGE)


def format_request(request: Request) -> str:
    """A request in words."""
    try:
        name = Command(request.type).name
    except ValueError:
        name = f"command {request.type}"
    return name if name == "FLUSH" else f"{name} at {request.offset}, {request.length} bytes,"


@dataclass(slots=True)
class _Cause:
    """Something that makes requests fail."""

    name: str
    reason: str
    reported_at: float
    """When, in seconds of :func:`time.monotonic`."""
    pause: float
    repeats: int = 0
    """Requests that failed since."""
    last_at: str = ""
    """The last of them."""

    @property
    def due(self) -> float:
        """When it is told how many those were."""
        return self.reported_at + self.pause

    def is_over(self, now: float) -> bool:
        """Whether it has not come again for so long that it is new once more."""
        return not self.repeats and now - self.reported_at > 2 * MAX_PAUSE


class FailureLog:
    """What is known of failures, and what was told.

    Args:
        pause: seconds after which it is told how often a cause came again.

    """

    def __init__(self, *, pause: float = MIN_PAUSE) -> None:
        self._pause = pause
        self._window = 6 * pause
        self._causes: OrderedDict[object, _Cause] = OrderedDict()
        self._others = 0  # requests that failed for causes that were not told
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
        """Tell of a failure, or count it; never raises.

        Args:
            name: of the device or the export, in words.
            what: has failed, in words.
            failure: what :func:`classify` has made of the exception.
            exc: the exception, which is not kept.
            of: which device or export it is, where the name may change; hashable.

        """
        try:
            self._report(name, what, failure, exc, name if of is None else of)
        except Exception:  # a handler of the log, say
            logger.debug("a failure could not be told", exc_info=True)

    def report_bug(self, name: str, what: str, exc: BaseException) -> None:
        """Tell, with a traceback, or count, that something failed that is no request."""
        self.report(name, what, HandlerFailure(errno.EIO, format_exception(exc), True), exc)

    def close(self) -> None:
        """Tell what was counted and not told; from now on nothing is told later."""
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
    """What two failures of one cause have in common."""
    last = _last(exc.__traceback__)
    where = None if last is None else (last.tb_frame.f_code.co_filename, last.tb_lineno)
    return of, _full_name(type(exc)), _VARIABLE.sub("#", reason), where


class Reporter:
    """Judges and tells what the handlers of one device raise.

    Args:
        failures: what is known of failures; several connections may share it.
        device: whose handlers are called.
        where: the device node or the export, in words; empty while there is none.

    Attributes:
        where: the same; may be set.

    """

    __slots__ = ("_device", "_failures", "_first", "where")  # each client has one

    def __init__(self, failures: FailureLog, device: BlockDevice, where: str = "") -> None:
        self.where = self._first = where
        self._failures = failures
        self._device = device

    @property
    def name(self) -> str:
        """What the device is called in the log."""
        kind = type(self._device).__name__
        return f"{self.where} ({kind})" if self.where else kind

    def report(self, request: Request, exc: BaseException) -> HandlerFailure:
        """Judge what a handler has raised, and tell of it; never raises."""
        failure = classify(exc, self._device, request)
        self._failures.report(self.name, format_request(request), failure, exc, of=self._first)
        return failure
