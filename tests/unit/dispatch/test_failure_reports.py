"""Failed requests in logs and events: names of devices and exports, reasons, the command's log."""

from __future__ import annotations

import asyncio
import errno
import sys
from pathlib import Path

import pytest

import aiovblk
from aiovblk import BlockDevice
from aiovblk.dispatch import Dispatcher, FailureLog, HandlerLimits, Reporter
from aiovblk.events import RequestEvent, RequestFailed
from aiovblk.mounting.backend import LocalBackend
from aiovblk.mounting.connections import ConnectionGroup
from aiovblk.mounting.state import MountState
from aiovblk.protocol import Command, Request
from aiovblk.storage import MemoryDevice

from ...support.dispatch_client import PuppetDevice, served
from ...support.failing_device import Failing, eio, messages

READ, WRITE = Command.READ, Command.WRITE

REQUEST = Request(0, READ, 1, 1024, 512)


# Names


async def test_log_names_export_and_class_and_reconnecting_repeats_nothing(
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


async def test_each_export_of_one_process_is_logged(
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


async def test_log_names_the_node_of_a_mount_once_known_without_a_new_cause(
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
            dispatcher._reporter.report(REQUEST, eio())

    fail()
    local.set_path("/dev/nbd7")
    fail()
    await local.close()
    first, again = messages(caplog)
    assert first.startswith("Failing: READ at 1024, 512 bytes, failed:")
    assert again.startswith("/dev/nbd7 (Failing): 3 more failed in")


async def test_log_names_a_requested_node_from_the_first_failure_on(
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


async def test_log_names_the_device_and_not_its_unaligned_adapter() -> None:
    assert Reporter(FailureLog(), Failing(eio), "export 'x'").name == "export 'x' (Failing)"
    assert Reporter(FailureLog(), Failing(eio)).name == "Failing"


# Events


async def failed_events(
    device: BlockDevice, *requests: tuple[Command, int, int]
) -> list[RequestFailed]:
    events: list[RequestEvent] = []
    async with served(device, on_event=events.append) as server:
        for command, offset, length in requests:
            data = bytes(length) if command == WRITE else b""
            await server.client.call(command, offset, length, data)
    return [event for event in events if isinstance(event, RequestFailed)]


async def test_event_of_a_request_that_failed_has_the_reason() -> None:
    (event,) = await failed_events(Failing(eio), (READ, 0, 4096))
    assert (event.errno, event.reason) == (errno.EIO, "OSError: [Errno 5] backend says no")


async def test_event_of_a_request_that_was_refused_has_the_reason() -> None:
    events = await failed_events(Failing(eio), (WRITE, 0, 4096), (READ, 1 << 20, 4096))
    assert [(event.errno, event.reason.partition(":")[0]) for event in events] == [
        (errno.EPERM, "refused"),
        (errno.EINVAL, "refused"),
    ]
    assert events[0].reason.endswith("read-only")


async def test_request_cancelled_by_the_server_is_no_failure_of_its_handler(
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
        "cancelled by the server",
        "cancelled by the server",
    ]
    assert not caplog.records


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
        with pytest.raises(OSError, match=r".") as failure:
            await remote.read(0, 4096)
    server.terminate()
    _, shown = await server.communicate()
    assert (failure.value.errno, server.returncode) == (errno.EIO, 0)
    assert (
        "aiovblk: export '' (Disk): READ at 0, 4096 bytes, failed: OSError: [Errno 5] backend says"
        " no"
    ) in shown.decode()
