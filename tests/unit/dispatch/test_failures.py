"""Log lines of failed requests: device, request, reason; repeats of a cause are counted."""

from __future__ import annotations

import asyncio
import errno
import importlib
import logging
import re
import subprocess
import sys
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.dispatch import FailureLog, Reporter
from aiovblk.dispatch import failures as module
from aiovblk.dispatch.failures import MAX_CAUSES, MAX_LINES, classify
from aiovblk.errors import OUTAGES
from aiovblk.protocol import Command, Request
from aiovblk.storage import Layer, MemoryDevice

from ...support.dispatch_client import PuppetDevice, served
from ...support.failing_device import Failing, eio, messages
from ...support.worker_services import Panic

READ, WRITE, FLUSH = Command.READ, Command.WRITE, Command.FLUSH

REQUEST = Request(0, READ, 1, 1024, 512)


def raised(exc: BaseException, line: int = 0) -> BaseException:
    """Raise an exception at one of two places, and return it with its traceback."""
    try:
        if line:
            raise exc
        raise exc
    except BaseException as caught:
        return caught


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


def report(
    failures: FailureLog,
    exc: BaseException,
    *,
    name: str = "disk",
    of: object = None,
    line: int = 0,
) -> None:
    exc = raised(exc, line)
    failures.report(
        name, "READ at 1024, 512 bytes,", classify(exc, BlockDevice(), REQUEST), exc, of=of
    )


# One line for each new cause


async def test_os_error_is_logged_with_device_request_and_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(Failing(eio)) as server:
        assert (await server.client.call(READ, 4096, 8192)).error == errno.EIO
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info is None
    assert record.getMessage() == (
        "Failing: READ at 4096, 8192 bytes, failed: OSError: [Errno 5] backend says no"
    )


async def test_failed_flush_is_logged_without_an_offset(caplog: pytest.LogCaptureFixture) -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(FLUSH)
        (await device.calls.get()).fail(eio())
        await server.client.reply()
    assert messages(caplog) == ["PuppetDevice: FLUSH failed: OSError: [Errno 5] backend says no"]


async def test_repeated_bug_is_logged_with_one_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(Failing(lambda: KeyError("block"))) as server:
        for _ in range(5):
            await server.client.call(READ, 0, 4096)
    first, again = caplog.records
    assert (first.levelno, first.exc_info is None) == (logging.ERROR, False)
    assert again.exc_info is None
    assert "in read" in caplog.text  # the handler's own line
    assert re.fullmatch(
        r"Failing: 4 more failed in .* s, the last READ at 0, 4096 bytes: KeyError: 'block'",
        again.getMessage(),
    )


async def test_different_causes_are_logged_each(caplog: pytest.LogCaptureFixture) -> None:
    errors = [eio, lambda: OSError(errno.EIO, "another"), lambda: ValueError("a bug"), eio]
    async with served(Failing(*errors)) as server:
        for _ in errors:
            await server.client.call(READ, 0, 4096)
    assert [each.rpartition(": ")[2] for each in messages(caplog)] == [
        "[Errno 5] backend says no",
        "[Errno 5] another",
        "a bug",
        "[Errno 5] backend says no",  # that it came again, at the end
    ]


async def test_texts_that_differ_in_numbers_and_identifiers_are_one_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = FailureLog()
    for text in ("chunk 1 is missing (request 0af31bc9)", "chunk 27 is missing (request 77e0aa31)"):
        report(failures, OSError(errno.EIO, text))
    assert len(caplog.records) == 1


async def test_same_error_raised_elsewhere_is_another_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = FailureLog()
    for line in (0, 1, 0):
        report(failures, eio(), line=line)
    assert len(caplog.records) == 2


async def test_text_of_an_error_cannot_move_the_cursor_or_fill_the_screen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = FailureLog()
    report(failures, OSError(errno.EIO, "red \x1b[31m\nnew line " + "x" * 1000))
    (message,) = messages(caplog)
    assert r"red \x1b[31m\nnew line xxx" in message
    assert message.isprintable()
    assert len(message) < 400


# Repeated ones


async def test_repeats_of_a_cause_are_counted_and_logged_after_doubling_pauses(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    failures = FailureLog(pause=10)
    report(failures, eio())
    for elapsed, count in ((10, 3), (20, 1), (40, 2)):
        caplog.clear()
        for _ in range(count):
            report(failures, eio())
        clock[0] += elapsed - 1
        failures._on_timer()
        assert not caplog.records
        clock[0] += 1
        failures._on_timer()
        assert messages(caplog) == [
            f"disk: {count} more failed in {elapsed} s, the last READ at 1024, 512 bytes:"
            " OSError: [Errno 5] backend says no"
        ]
    failures.close()
    assert len(caplog.records) == 1


async def test_timer_logs_the_count_when_no_request_fails_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoken = asyncio.Event()

    class Hearing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "more failed" in record.getMessage():
                spoken.set()

    hearing = Hearing()
    logging.getLogger("aiovblk").addHandler(hearing)
    try:
        failures = FailureLog(pause=0.01)
        for _ in range(2):
            report(failures, eio())
        await spoken.wait()
    finally:
        logging.getLogger("aiovblk").removeHandler(hearing)


async def test_outage_of_another_day_is_new_again(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    failures = FailureLog()
    for _ in range(2):
        report(failures, eio())
        clock[0] += 86400
    assert [each.startswith("disk: READ at 1024") for each in messages(caplog)] == [True, True]


async def test_memory_and_lines_are_bounded_whatever_the_number_of_causes(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    failures = FailureLog()
    words = [f"{chr(97 + one)}{chr(97 + two)}x" for one in range(20) for two in range(20)]
    for word in words:
        report(failures, OSError(errno.EIO, word))
    assert len(caplog.records) == MAX_LINES
    for _ in range(10):
        clock[0] += 1000
        for word in words:
            report(failures, OSError(errno.EIO, word))
    assert len(failures._causes) <= MAX_CAUSES
    failures.close()
    assert sum("more requests failed, for other causes" in each for each in messages(caplog)) == 1
    counts = [int(number) for number in re.findall(r"disk: (\d+) more failed", caplog.text)]
    others = [int(number) for number in re.findall(r"(\d+) more requests failed", caplog.text)]
    first = sum("READ at 1024, 512 bytes, failed" in each for each in messages(caplog))
    assert first + sum(counts) + sum(others) == 11 * len(words)  # all are counted


async def test_exceptions_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Exception):  # noqa: N818 (a test's own)
        alive = 0

        def __init__(self) -> None:
            Large.alive += 1

        def __del__(self) -> None:
            Large.alive -= 1

    monkeypatch.setattr(module.logger, "disabled", True)  # pytest keeps what is logged
    async with served(Failing(Large)) as server:
        for _ in range(3):
            await server.client.call(READ, 0, 4096)
            assert Large.alive == 0


# Outages and bugs


KNOWN = [
    ("aiohttp", "ClientConnectionError", ()),
    ("asyncpg", "PostgresError", ()),
    ("asyncpg", "InterfaceError", ("pool is closed",)),
    ("obstore.exceptions", "GenericError", ()),
    ("asyncio", "IncompleteReadError", (b"", 5)),
]


@pytest.mark.parametrize(("package", "name", "args"), KNOWN)
async def test_errors_of_well_known_clients_are_outages(
    package: str, name: str, args: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    kind = getattr(importlib.import_module(package), name)
    async with served(Failing(lambda: kind(*args))) as server:
        assert (await server.client.call(READ, 0, 4096)).error == errno.EIO
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)
    assert name in record.getMessage()


@pytest.mark.parametrize("name", OUTAGES)
def test_outage_is_known_by_package_and_class_wherever_it_is_defined(name: str) -> None:
    package, _, kind = name.partition(".")
    base = type(kind, (Exception,), {"__module__": f"{package}.inner.errors"})
    derived = type("Derived", (base,), {"__module__": "users.own"})
    assert not classify(derived("down"), BlockDevice(), REQUEST).is_bug
    stranger = type(kind, (Exception,), {"__module__": "another.package"})
    assert classify(stranger("a bug"), BlockDevice(), REQUEST).is_bug


def test_clients_are_not_imported_to_know_their_errors() -> None:
    names = {each.partition(".")[0] for each in OUTAGES} - {"asyncio", "anyio"}
    command = f"import sys, aiovblk; print(sorted({names} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


class Down(Exception):  # noqa: N818 (a test's own)
    pass


def test_device_names_the_outages_of_its_own_also_below_a_layer() -> None:
    class Disk(MemoryDevice):
        outages = (Down,)

    disk = Disk(4096)
    assert not classify(Down(), disk, REQUEST).is_bug
    assert not classify(Down(), Layer(disk), REQUEST).is_bug
    assert not classify(Down(), Layer(Layer(disk)), REQUEST).is_bug
    assert classify(Down(), MemoryDevice(4096), REQUEST).is_bug


@pytest.mark.parametrize(
    ("exc", "is_bug"),
    [
        (TimeoutError(), False),
        (ConnectionResetError(), False),
        (ExceptionGroup("two", [TimeoutError(), OSError()]), False),
        (ExceptionGroup("two", [TimeoutError(), KeyError()]), True),
        (BaseExceptionGroup("one", [Panic()]), True),
        (EOFError(), True),
        (Panic(), True),
        (KeyboardInterrupt(), False),
    ],
)
def test_bugs_and_outages_are_distinguished(exc: BaseException, is_bug: bool) -> None:
    assert classify(exc, BlockDevice(), REQUEST).is_bug is is_bug


# What succeeds pays nothing


async def test_successful_request_runs_no_failure_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("called for a request that succeeds")

    monkeypatch.setattr(Reporter, "report", forbidden)
    monkeypatch.setattr(FailureLog, "report", forbidden)
    monkeypatch.setattr(module, "classify", forbidden)
    async with served(MemoryDevice(1 << 20)) as server:
        assert await server.client.read(0, 4096) == bytes(4096)
        await server.client.write(0, bytes(4096))
