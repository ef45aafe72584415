"""Random requests, arriving in random pieces, against what must hold for each; seeded."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.dispatch import (
    ConcurrencyLimiter,
    ConnectionQuota,
    Dispatcher,
    MemoryBudget,
    Stats,
    pacing,
    reply_sender,
    scheduler,
)
from aiovblk.protocol import (
    Command,
    CommandFlag,
    ExportInfo,
    NegotiationResult,
    ReplyMode,
    Request,
    TransmissionFlag,
    parse_error,
    parse_reply_header,
    reply_header_size,
    serialize_request,
)
from aiovblk.stream import StreamProtocol, slices

from ...support.simulated_loop import MemoryTransport, StillLoop
from ...support.sizes import by_size

pytestmark = pytest.mark.slow

BLOCK = 512
SIZE = 1 << 22
FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA

variable: ContextVar[object] = ContextVar("variable", default="the owner's")

BEHAVIOURS = ["quick"] * 6 + ["waits"] * 3 + ["refuses", "fails", "cancelled", "changes", "both"]


def pattern(offset: int, length: int) -> bytes:
    return bytes([offset // BLOCK % 251]) * length


class Mixed(BlockDevice):
    """Its handlers do what the test has drawn for the offset that they are called for."""

    block_size, size = BLOCK, SIZE

    def __init__(self, clock: list[int], draw: random.Random) -> None:
        self.plans: dict[int, str] = {}
        self.waiting: list[asyncio.Future[None]] = []
        self.started: list[int] = []
        self.running = self.most_running = self.flushes = 0
        self._clock = clock
        self._draw = draw
        self._tasks: set[asyncio.Task[Any]] = set()

    async def _behave(self, offset: int) -> None:
        assert variable.get() == "the owner's"
        task = asyncio.current_task()
        assert task is not None
        assert task not in self._tasks, "the task of a handler that waits"
        plan = self.plans[offset]
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self._clock[0] += self._draw.choice([1000, 20_000, 500_000])
        try:
            if plan in ("changes", "both"):
                variable.set(offset)
            if plan == "cancelled":
                self.plans[offset] = "quick"  # it is run again
                task.cancel()
                await asyncio.sleep(0)
            if plan in ("waits", "both"):
                self._tasks.add(task)
                self.waiting.append(asyncio.get_running_loop().create_future())
                await self.waiting[-1]
                self._tasks.discard(task)
                assert asyncio.current_task() is task
                assert variable.get() == (offset if plan == "both" else "the owner's")
            if plan == "refuses":
                raise OSError(errno.ENOSPC, "full")
            if plan == "fails":
                raise ZeroDivisionError
        finally:
            self.running -= 1

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        self.started.append(offset)
        await self._behave(offset)
        data = pattern(offset, length)
        kinds: list[Callable[[bytes], bytes | bytearray | memoryview]] = [
            bytes,
            bytearray,
            memoryview,
        ]
        return self._draw.choice(kinds)(data)

    async def write(self, offset: int, data: memoryview) -> None:
        self.started.append(offset)
        expected = pattern(offset, len(data))
        assert data == expected
        await self._behave(offset)
        assert data == expected  # nothing was received over it

    async def flush(self) -> None:
        self.flushes += 1


@dataclass
class Case:
    """One connection, what is sent on it, and what has to come back."""

    seed: int
    mode: ReplyMode = ReplyMode.SIMPLE
    quota: int | None = None
    concurrency: int = 128
    blocks: tuple[int, ...] = (1, 1, 1, 8, 16)
    """How many one request may be for."""
    clock: list[int] = field(default_factory=lambda: [10**12])

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.device = Mixed(self.clock, self.draw)
        self.stats = Stats()
        self.limiter = ConcurrencyLimiter(self.concurrency)
        self.budget = MemoryBudget(self.quota or 1)
        self.requests: dict[int, Request] = {}
        self.disconnects = 0
        self.most = self.draw.choice([40, 600, 5000, 100_000])

    def open(self, loop: StillLoop) -> None:
        self.stream = StreamProtocol()
        self.transport = MemoryTransport(self.stream)
        quota = None if self.quota is None else ConnectionQuota(self.budget, self.quota)
        self.dispatcher = Dispatcher(
            self.device,
            self.stats,
            negotiated=NegotiationResult("", ExportInfo(SIZE, FLAGS), self.mode),
            quota=quota,
            limiter=self.limiter,
            on_disconnect=self._count_disconnect,
        )
        self.dispatcher.attach_stream(self.stream)
        self.serving = loop.start(self.dispatcher.run())

    def _count_disconnect(self) -> None:
        self.disconnects += 1

    def messages(self, count: int) -> bytes:
        """Draw requests: in order, with flags, of other commands, and refused ones."""
        sent = b""
        for cookie in range(count):
            kind = self.draw.choice(["read"] * 5 + ["write"] * 5 + ["flush", "beyond", "odd"])
            offset, length = cookie * 16 * BLOCK, BLOCK * self.draw.choice(self.blocks)
            flags = self.draw.choice([0, 0, 0, CommandFlag.FUA])
            self.device.plans[offset] = self.draw.choice(BEHAVIOURS)
            command, payload = Command.READ, b""
            if kind == "write":
                command, payload = Command.WRITE, pattern(offset, length)
            elif kind == "flush":
                command, offset, length = Command.FLUSH, 0, 0
            elif kind == "beyond":
                offset = SIZE
            elif kind == "odd":
                length += 1
            request = Request(flags, command, cookie, offset, length)
            self.requests[cookie] = request
            sent += serialize_request(request, self.mode) + payload
        return sent

    def cut(self, left: int) -> int:
        """Draw the length of the next piece."""
        return self.draw.randint(1, min(left, self.most))

    def expected(self, request: Request) -> int:
        """The error that a request must be answered with."""
        if request.type == Command.FLUSH:
            return 0
        if request.length % BLOCK or request.offset >= SIZE:
            return errno.EINVAL
        plan = self.device.plans[request.offset]
        return {"refuses": errno.ENOSPC, "fails": errno.EIO}.get(plan, 0)

    def check_replies(self) -> None:
        """Check that what was sent are whole replies, one for each request, and right."""
        sent, answered = bytes(self.transport.sent), set()
        while sent:
            size = reply_header_size(self.mode, sent, 0)
            header = parse_reply_header(self.mode, sent)
            sent = sent[size:]
            request = self.requests[header.cookie]
            assert header.cookie not in answered
            assert header.done
            answered.add(header.cookie)
            error, length = header.error, header.length
            if header.type is None:
                length = request.length if request.type == Command.READ and not error else 0
            payload, sent = sent[:length], sent[length:]
            if header.type is not None and header.type >> 15:
                error, _ = parse_error(memoryview(payload))
            elif header.type is not None:
                payload = payload[8:]
            assert error == self.expected(request)
            if request.type == Command.READ and not error:
                assert payload == pattern(request.offset, request.length)
        assert answered == self.requests.keys()

    def check_end(self) -> None:
        """Check that nothing is left over, and all is counted."""
        asked = [each for each in self.requests.values() if not self.expected(each)]
        by_command = {
            command: [each.length for each in asked if each.type == command] for command in Command
        }
        stats = self.stats
        assert stats.in_flight == 0
        assert (stats.reads, stats.bytes_read) == (
            len(by_command[Command.READ]),
            sum(by_command[Command.READ]),
        )
        assert (stats.writes, stats.bytes_written) == (
            len(by_command[Command.WRITE]),
            sum(by_command[Command.WRITE]),
        )
        assert stats.errors == len(self.requests) - len(asked)
        assert sum(each.count for each in stats.latency.values()) == len(self.requests)
        elapsed = self.clock[0] - 10**12
        assert all(each.total <= each.count * elapsed for each in stats.latency.values())
        assert self.limiter.running == 0
        assert self.device.most_running <= self.concurrency
        assert self.budget.used == 0


def finish_some(case: Case, loop: StillLoop) -> None:
    """Let some handlers that wait go on."""
    waiting = case.device.waiting
    for _ in range(case.draw.randint(0, len(waiting))):
        future = waiting.pop(case.draw.randrange(len(waiting)))
        if not future.done():
            future.set_result(None)
    loop.run_due()


def deliver(case: Case, loop: StillLoop, data: bytes, cut: Callable[[int], int]) -> None:
    """Deliver all bytes in pieces; between them some handlers go on."""
    while data:
        size = cut(len(data))
        piece, data = data[:size], data[size:]
        left = case.transport.deliver(piece)
        data = left + data
        finish_some(case, loop)
    while case.device.waiting or case.stats.in_flight:
        finish_some(case, loop)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [10**12]
    for module in (pacing, reply_sender, scheduler, slices):
        monkeypatch.setattr(module, "monotonic_ns", lambda: now[0])
    return now


CASES: list[dict[str, Any]] = [
    {},
    {"mode": ReplyMode.STRUCTURED},
    {"mode": ReplyMode.EXTENDED},
    {"quota": 48 * 1024},
    {"quota": 1 << 30, "mode": ReplyMode.STRUCTURED},
    {"concurrency": 1},
    {"concurrency": 3, "quota": 1 << 16},
    {"quota": 1 << 18, "blocks": (1, 8, 16, 300)},
]


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("seed", range(by_size(8, 100)))
def test_each_request_is_answered_once_and_as_its_handler_did(
    clock: list[int], seed: int, options: dict[str, Any]
) -> None:
    case = Case(seed, clock=clock, **options)
    with StillLoop() as loop:
        case.open(loop)
        deliver(case, loop, case.messages(60), case.cut)
        case.check_replies()
        case.check_end()
        case.transport.deliver(serialize_request(Request(0, Command.DISC, 0, 0, 0), case.mode))
        loop.run_due()
        assert case.disconnects == 1
        case.transport.lose()
        loop.run_due()
        assert case.serving.done()
        assert case.serving.exception() is None


@pytest.mark.parametrize("options", CASES)
def test_requests_may_arrive_byte_by_byte(clock: list[int], options: dict[str, Any]) -> None:
    case = Case(7, clock=clock, **options)
    with StillLoop() as loop:
        case.open(loop)
        deliver(case, loop, case.messages(12), lambda left: 1)
        case.check_replies()
        case.check_end()
        case.transport.lose()
        loop.run_due()


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("seed", range(by_size(4, 60)))
def test_what_was_sent_before_the_end_of_the_stream_is_answered(
    clock: list[int], seed: int, options: dict[str, Any]
) -> None:
    case = Case(seed, clock=clock, **options)
    with StillLoop() as loop:
        case.open(loop)
        left = case.messages(40)
        while left := case.transport.deliver(left):
            finish_some(case, loop)
        case.transport.end()
        loop.run_due()
        while case.device.waiting or case.stats.in_flight:
            finish_some(case, loop)
        case.check_replies()
        case.check_end()
        assert case.serving.done()
        assert case.serving.exception() is None
        case.transport.lose()


def test_handlers_start_in_the_order_of_arrival(clock: list[int]) -> None:
    for seed in range(by_size(10, 200)):
        case = Case(seed, clock=clock, concurrency=4)
        with StillLoop() as loop:
            case.open(loop)
            deliver(case, loop, case.messages(60), case.cut)
            started = list(dict.fromkeys(case.device.started))
            assert started == sorted(started)
            case.transport.lose()
            loop.run_due()


@pytest.mark.parametrize("ends", ["lose", "abort"])
@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("seed", range(by_size(3, 40)))
def test_connection_that_ends_at_any_point_leaves_nothing_running(
    clock: list[int], seed: int, options: dict[str, Any], ends: str
) -> None:
    case = Case(seed, clock=clock, **options)
    with StillLoop() as loop:
        case.open(loop)
        messages = case.messages(40)
        case.transport.deliver(messages[: case.draw.randint(1, len(messages))])
        for _ in range(case.draw.randint(0, 3)):
            finish_some(case, loop)
        if ends == "lose":
            case.transport.lose()
        else:
            case.dispatcher.abort()
        loop.run_due()
        while case.device.waiting:
            finish_some(case, loop)
        assert case.serving.done()
        assert case.stats.in_flight == 0
        assert case.limiter.running == 0
        assert case.device.running == 0


@pytest.mark.parametrize("seed", range(by_size(5, 100)))
def test_two_connections_share_a_limiter_in_turn(clock: list[int], seed: int) -> None:
    with StillLoop() as loop:
        cases = [Case(seed, clock=clock, concurrency=2), Case(seed + 1, clock=clock)]
        cases[1].limiter = cases[0].limiter
        messages = []
        for case in cases:
            case.open(loop)
            messages.append(case.messages(40))
        for case, data in zip(cases, messages, strict=True):
            case.transport.deliver(data)
        while any(case.device.waiting or case.stats.in_flight for case in cases):
            for case in cases:
                finish_some(case, loop)
        for case in cases:
            case.check_replies()
            case.check_end()
            case.transport.lose()
        assert sum(case.device.most_running for case in cases) <= 4
        loop.run_due()
