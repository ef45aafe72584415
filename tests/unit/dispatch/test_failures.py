"""Why requests fail is told: which device, which request, what was raised; once for each cause."""

from __future__ import annotations

import asyncio
import errno
import importlib
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aiovblk
from aiovblk import BlockDevice
from aiovblk.dispatch import Dispatcher, FailureLog, HandlerLimits, Reporter
from aiovblk.dispatch import failures as module
from aiovblk.dispatch.failures import MAX_CAUSES, MAX_LINES, classify
from aiovblk.errors import OUTAGES
from aiovblk.events import RequestEvent, RequestFailed
from aiovblk.mounting.backend import LocalBackend
from aiovblk.mounting.connections import ConnectionGroup
from aiovblk.mounting.state import MountState
from aiovblk.protocol import Command, Request
from aiovblk.storage import Layer, MemoryDevice

from ...support.dispatch_client import PuppetDevice, served
from ...support.worker_services import Panic

READ, WRITE, FLUSH = Command.READ, Command.WRITE, Command.FLUSH

REQUEST = Request(0, READ, 1, 1024, 512)


class Failing(BlockDevice):
    """Each read raises what is next in line."""

    blocks = 8

    def __init__(self, *errors: Callable[[], BaseException]) -> None:
        self.errors = list(errors)

    async def read(self, offset: int, length: int) -> bytes:
        raise (self.errors.pop(0) if len(self.errors) > 1 else self.errors[0])()


def eio() -> OSError:
    return OSError(errno.EIO, "backend says no")


def raised(exc: BaseException, line: int = 0) -> BaseException:
    """An exception as it is once it was raised, at one of two places."""
    try:
        if line:
            raise exc
        raise exc
    except BaseException as caught:
        return caught


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is; a test sets it."""
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


def told(
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


async def test_reason_of_an_os_error_is_told_with_device_request_and_cause(
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


async def test_flush_is_told_without_a_place(caplog: pytest.LogCaptureFixture) -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(FLUSH)
        (await device.calls.get()).fail(eio())
        await server.client.reply()
    assert messages(caplog) == ["PuppetDevice: FLUSH failed: OSError: [Errno 5] backend says no"]


async def test_bug_is_told_with_one_traceback_however_often_it_comes(
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


async def test_causes_that_differ_are_told_each(caplog: pytest.LogCaptureFixture) -> None:
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
        told(failures, OSError(errno.EIO, text))
    assert len(caplog.records) == 1


async def test_same_error_raised_elsewhere_is_another_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = FailureLog()
    for line in (0, 1, 0):
        told(failures, eio(), line=line)
    assert len(caplog.records) == 2


async def test_text_of_an_error_cannot_move_the_cursor_or_fill_the_screen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = FailureLog()
    told(failures, OSError(errno.EIO, "red \x1b[31m\nnew line " + "x" * 1000))
    (message,) = messages(caplog)
    assert r"red \x1b[31m\nnew line xxx" in message
    assert message.isprintable()
    assert len(message) < 400


# Repeated ones


async def test_cause_that_comes_again_is_told_with_its_count_after_pauses_that_double(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    failures = FailureLog(pause=10)
    told(failures, eio())
    for elapsed, count in ((10, 3), (20, 1), (40, 2)):
        caplog.clear()
        for _ in range(count):
            told(failures, eio())
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


async def test_count_is_told_by_a_timer_when_no_request_fails_any_more(
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
            told(failures, eio())
        await spoken.wait()
    finally:
        logging.getLogger("aiovblk").removeHandler(hearing)


async def test_outage_of_another_day_is_new_again(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    failures = FailureLog()
    for _ in range(2):
        told(failures, eio())
        clock[0] += 86400
    assert [each.startswith("disk: READ at 1024") for each in messages(caplog)] == [True, True]


async def test_memory_and_lines_are_bounded_whatever_the_number_of_causes(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    failures = FailureLog()
    words = [f"{chr(97 + one)}{chr(97 + two)}x" for one in range(20) for two in range(20)]
    for word in words:
        told(failures, OSError(errno.EIO, word))
    assert len(caplog.records) == MAX_LINES
    for _ in range(10):
        clock[0] += 1000
        for word in words:
            told(failures, OSError(errno.EIO, word))
    assert len(failures._causes) <= MAX_CAUSES
    failures.close()
    assert sum("more requests failed, for other causes" in each for each in messages(caplog)) == 1
    counts = [int(number) for number in re.findall(r"disk: (\d+) more failed", caplog.text)]
    others = [int(number) for number in re.findall(r"(\d+) more requests failed", caplog.text)]
    first = sum("READ at 1024, 512 bytes, failed" in each for each in messages(caplog))
    assert first + sum(counts) + sum(others) == 11 * len(words)  # none is left out


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
def test_what_is_a_bug_and_what_is_none(exc: BaseException, is_bug: bool) -> None:
    assert classify(exc, BlockDevice(), REQUEST).is_bug is is_bug


# Who is named


async def test_export_and_class_are_named_and_reconnecting_tells_nothing_twice(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disks = {"broken": Failing(eio), "other": MemoryDevice(1 << 20)}
    async with aiovblk.serve(disks, unix=path) as server:
        for _ in range(3):
            for uri in server.uris:
                async with aiovblk.connect(uri) as remote:
                    try:
                        await remote.read(0, 4096)
                    except OSError:
                        assert "broken" in uri
    first, again = messages(caplog)
    assert first == (
        "export 'broken' (Failing): READ at 0, 4096 bytes, failed: OSError: [Errno 5] backend says"
        " no"
    )
    assert again.startswith("export 'broken' (Failing): 2 more failed in")


async def test_each_export_of_one_process_is_told_of(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with aiovblk.serve({"a": Failing(eio), "b": Failing(eio)}, unix=path) as server:
        for uri in server.uris:
            async with aiovblk.connect(uri) as remote:
                with pytest.raises(OSError, match=r"."):
                    await remote.read(0, 4096)
    assert [each.partition(":")[0] for each in messages(caplog)] == [
        "export 'a' (Failing)",
        "export 'b' (Failing)",
    ]


async def test_node_of_a_mount_is_named_once_it_is_known_and_that_is_no_new_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    local = LocalBackend(
        Failing(eio),
        connections=2,
        limits=HandlerLimits(concurrency=1, handler_timeout=None, slow_request=None),
    )
    lines = ConnectionGroup(MountState())
    await local.open(lines)
    dispatchers = [line for line in lines.all() if isinstance(line, Dispatcher)]

    def fail() -> None:
        for dispatcher in dispatchers:
            dispatcher._scheduler._report(REQUEST, raised(eio()))

    fail()
    local.set_path("/dev/nbd7")
    fail()
    await local.close()
    first, again = messages(caplog)
    assert first.startswith("Failing: READ at 1024, 512 bytes, failed:")
    assert again.startswith("/dev/nbd7 (Failing): 3 more failed in")


async def test_node_that_was_asked_for_is_named_from_the_first_failure_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    local = LocalBackend(
        Failing(eio),
        connections=1,
        limits=HandlerLimits(concurrency=1, handler_timeout=None, slow_request=None),
    )
    local.set_path("/dev/nbd3")
    await local.open(ConnectionGroup(MountState()))
    local._reporter.report(REQUEST, eio())
    assert messages(caplog)[0].startswith("/dev/nbd3 (Failing): READ")


async def test_device_of_a_client_is_named_as_it_is_and_not_as_what_aligns_its_requests() -> None:
    assert Reporter(FailureLog(), Failing(eio), "export 'x'").name == "export 'x' (Failing)"
    assert Reporter(FailureLog(), Failing(eio)).name == "Failing"


# Events


async def heard(device: BlockDevice, *requests: tuple[Command, int, int]) -> list[RequestFailed]:
    events: list[RequestEvent] = []
    async with served(device, on_event=events.append) as server:
        for command, offset, length in requests:
            data = bytes(length) if command == WRITE else b""
            await server.client.call(command, offset, length, data)
    return [event for event in events if isinstance(event, RequestFailed)]


async def test_event_of_a_request_that_failed_has_the_reason() -> None:
    (event,) = await heard(Failing(eio), (READ, 0, 4096))
    assert (event.errno, event.reason) == (errno.EIO, "OSError: [Errno 5] backend says no")


async def test_event_of_a_request_that_was_refused_has_the_reason() -> None:
    events = await heard(Failing(eio), (WRITE, 0, 4096), (READ, 1 << 20, 4096))
    assert [(event.errno, event.reason.partition(":")[0]) for event in events] == [
        (errno.EPERM, "refused"),
        (errno.EINVAL, "refused"),
    ]
    assert events[0].reason.endswith("read-only")


async def test_request_that_is_given_up_says_so_and_is_no_failure_of_its_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device, events = PuppetDevice(), list[RequestEvent]()
    async with served(device, concurrency=1, on_event=events.append) as server:
        for _ in range(2):
            server.client.send(READ, 0, 512)
        await server.accepted()
        server.dispatcher.fail_running()
        await server.client.replies(2)
    assert [event.reason for event in events if isinstance(event, RequestFailed)] == [
        "given up",
        "given up",
    ]
    assert not caplog.records


# What succeeds pays nothing


async def test_request_that_succeeds_touches_nothing_of_this(
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


# The command


FAILING = """
import aiovblk

class Disk(aiovblk.BlockDevice):
    blocks = 64

    async def read(self, offset, length):
        raise OSError(5, "backend says no")
"""


@pytest.mark.one_loop
async def test_command_shows_the_reason_by_default(tmp_path: Path) -> None:
    (tmp_path / "disk.py").write_text(FAILING)
    socket = tmp_path / "socket"
    arguments = [f"{tmp_path}/disk.py:Disk", "--socket", str(socket)]
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aiovblk", "serve", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None
    uri = (await server.stdout.readline()).decode().split()[1]
    async with aiovblk.connect(uri) as remote:
        with pytest.raises(OSError, match=r"."):
            await remote.read(0, 4096)
    server.terminate()
    _, shown = await server.communicate()
    assert (
        "aiovblk: export '' (Disk): READ at 0, 4096 bytes, failed: OSError: [Errno 5] backend says"
        " no"
    ) in shown.decode()
