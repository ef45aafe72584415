"""Time slices: how long a flooding client delays others. Only handlers advance the clock."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import pytest

from aiovblk import BlockDevice, Extent
from aiovblk.dispatch import ConnectionQuota, Dispatcher, MemoryBudget, Stats, pacing, scheduler
from aiovblk.protocol import (
    Command,
    ExportInfo,
    Info,
    NegotiationResult,
    Option,
    Pause,
    ReplyMode,
    Request,
    ServerHandshake,
    TransmissionFlag,
    serialize_request,
)
from aiovblk.protocol.options import (
    OptionReader,
    parse_info_request,
    serialize_info_request,
    serialize_option,
)
from aiovblk.stream import SLICE, Slice, StreamProtocol, run_handshake, slices
from aiovblk.stream import handshake as handshake_module
from aiovblk.unaligned import UnalignedAdapter

from ...support.simulated_loop import MemoryTransport, StillLoop

pytestmark = pytest.mark.slow

MS = 1_000_000
SIZE = 1 << 30
FLOOD = 400

DEPTH = 128
"""Requests that the kernel has in flight on one connection."""

# Before Python 3.12 a task begins at the next turn of the loop only.
TURNS = 3 if sys.version_info >= (3, 12) else 6


class Clock:
    """Time that passes only where a test advances it."""

    now = 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.now = 10**12
    for module in (slices, handshake_module, pacing, scheduler):
        monkeypatch.setattr(module, "monotonic_ns", lambda: clock.now)
    return clock


class Worker(BlockDevice):
    """Each handler takes its time, and never waits."""

    block_size = 512
    size = SIZE

    def __init__(self, clock: Clock, nanoseconds: int) -> None:
        self.clock = clock
        self.nanoseconds = nanoseconds
        self.calls = 0

    def work(self) -> None:
        self.calls += 1
        self.clock.now += self.nanoseconds

    async def read(self, offset: int, length: int) -> bytes:
        self.work()
        return bytes(length)

    async def write(self, offset: int, data: memoryview) -> None:
        self.work()

    async def flush(self) -> None:
        self.work()

    async def trim(self, offset: int, length: int) -> None:
        self.work()

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        self.work()

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        self.work()
        return [Extent(512, hole=bool(at % 2), zero=bool(at % 2)) for at in range(4)]

    async def cache(self, offset: int, length: int) -> None:
        self.work()


class Connection:
    """One connection of a client whose every request costs the server some time."""

    def __init__(
        self,
        loop: StillLoop,
        device: BlockDevice,
        budget: MemoryBudget | None,
        *,
        stalled: bool = False,
    ) -> None:
        flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
        flags |= TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_CACHE
        self.stats = Stats()
        self.stream = StreamProtocol()
        self.transport = MemoryTransport(self.stream, stalled=stalled)
        self.dispatcher = Dispatcher(
            UnalignedAdapter(device),
            self.stats,
            negotiated=NegotiationResult(
                "", ExportInfo(SIZE, flags), ReplyMode.STRUCTURED, {"base:allocation": 1}
            ),
            quota=None if budget is None else ConnectionQuota(budget, 64 << 20),
            on_disconnect=lambda: None,
        )
        self.dispatcher.attach_stream(self.stream)
        self.serving = loop.start(self.dispatcher.run())

    @property
    def answered(self) -> int:
        stats = self.stats
        counted = (stats.reads, stats.writes, stats.flushes, stats.trims, stats.write_zeroes)
        return sum(counted) + stats.caches + stats.block_statuses + stats.errors


def request(command: int, offset: int = 0, length: int = 0, payload: bytes = b"") -> bytes:
    return serialize_request(Request(0, command, 7, offset, length)) + payload


KINDS = {
    "status": request(Command.BLOCK_STATUS, 0, SIZE),
    "zeroes": request(Command.WRITE_ZEROES, 0, SIZE),
    "trim": request(Command.TRIM, 0, SIZE),
    "read of a block": request(Command.READ, 0, 4096),
    "read of a byte": request(Command.READ, 1, 1),
    "write of a byte": request(Command.WRITE, 1, 1, b"x"),
    "large read": request(Command.READ, 0, 1 << 20),
    "flush": request(Command.FLUSH),
    "cache": request(Command.CACHE, 0, SIZE),
    "unknown": request(99),
    "refused": request(Command.READ, SIZE, 512),
}


def until_answered(loop: StillLoop, victim: Connection) -> int:
    """Turns of the loop until the victim's one request is answered."""
    victim.transport.deliver(request(Command.READ, 0, 512))
    turns = 0
    while not victim.answered:
        loop.turn()
        turns += 1
    return turns


@pytest.mark.parametrize("floods", [1, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_client_that_floods_keeps_another_waiting_for_a_slice_or_two(
    clock: Clock, kind: str, floods: int
) -> None:
    # A look at the clock every so often must do for what is small, and known to be so.
    cheap = "read" in kind or "write" in kind
    each = MS // 20 if cheap else MS
    with StillLoop() as loop:
        budget = MemoryBudget(512 << 20)
        device = Worker(clock, each)
        flooding = [Connection(loop, device, budget) for _ in range(floods)]
        victim = Connection(loop, Worker(clock, 0), budget)
        for connection in flooding:
            connection.transport.deliver(KINDS[kind] * FLOOD)
            for _ in range(TURNS):
                loop.turn()
        began, before = clock.now, sum(each.answered for each in flooding)
        assert until_answered(loop, victim) <= TURNS
        assert clock.now - began <= TURNS * (
            SLICE + pacing.CREDIT // pacing.SMALL * (each if cheap else 0) + MS
        )
        assert sum(each.answered for each in flooding) - before <= TURNS * DEPTH * 2
        for connection in (*flooding, victim):
            connection.dispatcher.abort()
        loop.run_due()


def test_flooding_connections_are_served_round_robin(clock: Clock) -> None:
    with StillLoop() as loop:
        devices = [Worker(clock, MS) for _ in range(5)]
        flooding = [Connection(loop, device, MemoryBudget(1 << 30)) for device in devices]
        for connection in flooding:
            connection.transport.deliver(KINDS["trim"] * 100)
        while min(device.calls for device in devices) < 50:
            loop.turn()
            counts = [device.calls for device in devices]
            assert max(counts) - min(counts) <= 2 * SLICE // MS + 2
        loop.run_due()
        assert [device.calls for device in devices] == [100] * 5
        for connection in flooding:
            connection.transport.lose()
        loop.run_due()


def test_kernel_is_served_in_slices_too_and_all_it_sends_is_received_meanwhile(
    clock: Clock,
) -> None:
    with StillLoop() as loop:
        kernel = Connection(loop, Worker(clock, MS), None)
        for _ in range(DEPTH):  # one by one, while those before are served in slices
            assert kernel.transport.deliver(KINDS["trim"]) == b""
            loop.turn()
            assert kernel.stream.reader.start == kernel.stream.reader.end
        loop.run_due()
        assert kernel.answered == DEPTH
        kernel.transport.lose()
        loop.run_due()


def test_requests_of_one_batch_are_answered_in_one_turn_if_they_are_quick(clock: Clock) -> None:
    with StillLoop() as loop:
        connection = Connection(loop, Worker(clock, 1000), None)
        connection.transport.deliver(KINDS["read of a block"] * 64)
        for _ in range(TURNS):
            loop.turn()
        assert connection.answered == 64
        connection.transport.lose()
        loop.run_due()


def test_replies_that_are_not_read_take_no_more_than_the_quota_whatever_their_size(
    clock: Clock,
) -> None:
    class Fragmented(Worker):
        most = 0

        async def extents(self, offset: int, length: int) -> Sequence[Extent]:
            self.calls += 1
            return [Extent(512, bool(at % 2), bool(at % 2)) for at in range(1 << 12)]

    with StillLoop() as loop:
        device = Fragmented(clock, 0)
        connection = Connection(loop, device, MemoryBudget(1 << 30), stalled=True)
        left = KINDS["status"] * 100
        while left:
            before, left = left, connection.transport.deliver(left)
            loop.run_due()
            if len(left) == len(before):
                break
        # Each is taken for 8 MiB while it is made, since it might be.
        assert device.calls <= (64 << 20) // (8 << 20) + 1
        connection.dispatcher.abort()
        loop.run_due()


def test_requests_that_wait_for_their_slice_are_not_forgotten(clock: Clock) -> None:
    with StillLoop() as loop:
        flooding = [Connection(loop, Worker(clock, MS), None) for _ in range(3)]
        for connection in flooding:
            connection.transport.deliver(KINDS["trim"] * 100)
        while flooding[-1].answered < 10:
            loop.turn()
        waiting = flooding[-1].dispatcher
        for _ in range(10):  # as if it were long until its turn comes
            flooding[0].dispatcher._scheduler._pacer._slice._others._served += 1
            assert waiting.abandoned() == 0
        # Nobody has had a slice any more: what was to call the next one was lost.
        assert waiting.abandoned() == waiting.stats.in_flight > 0
        assert waiting.abandoned() == waiting.stats.in_flight
        loop.run_due()
        for connection in flooding:
            assert connection.answered == 100
            connection.transport.lose()
        loop.run_due()


# The handshake


def test_flood_of_options_leaves_others_their_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = {f"{at:04}": "x" * 1000 for at in range(100)}
    handshake = ServerHandshake(exports)
    original = handshake._reply

    def reply(*arguments: object) -> None:
        clock.now += MS // 100
        original(*arguments)  # type: ignore[arg-type]  # passed on as they are

    monkeypatch.setattr(handshake, "_reply", reply)

    async def nothing() -> None:
        """No TLS is begun."""

    with StillLoop() as loop:
        stream = StreamProtocol()
        transport = MemoryTransport(stream)
        talking = loop.start(run_handshake(handshake, stream, start_tls=nothing))
        transport.deliver((3).to_bytes(4) + serialize_option(Option.LIST) * 200)
        for _ in range(20):
            before = clock.now
            loop.turn()
            assert clock.now - before <= SLICE + MS
        assert not talking.done()
        assert loop._due
        transport.lose()
        loop.run_due()
        assert talking.exception()


def test_list_of_exports_is_sent_in_pieces() -> None:
    handshake = ServerHandshake({f"{at:04}": "x" * 4000 for at in range(1000)})
    talk = handshake.run()
    next(talk)
    handshake.data_to_send()
    talk.send((3).to_bytes(4))
    step = talk.send(serialize_option(Option.LIST))
    sizes = [len(handshake.data_to_send())]
    while isinstance(step, Pause):
        step = next(talk)
        sizes.append(len(handshake.data_to_send()))
    assert max(sizes) < 128 * 1024
    assert sum(sizes) > 4_000_000


def test_long_option_is_parsed_at_once_and_not_number_by_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []
    original = OptionReader.read_bytes

    def take(fields: OptionReader, count: int) -> bytes:
        taken.append(count)
        return original(fields, count)

    monkeypatch.setattr(OptionReader, "read_bytes", take)
    name, wanted = parse_info_request(serialize_info_request("", [Info.BLOCK_SIZE] * 32_000))
    assert (name, len(wanted)) == ("", 32_000)
    assert len(taken) < 10


# The queue


def resumed(loop: StillLoop) -> tuple[list[str], Callable[[str], Callable[[], None]]]:
    order: list[str] = []
    return order, lambda name: lambda: order.append(name)


def test_one_connection_is_resumed_in_each_turn_in_their_order() -> None:
    with StillLoop() as loop:
        order, note = resumed(loop)
        some, others = Slice(), Slice()
        some.enqueue(note("first"))
        others.enqueue(note("second"))
        some.enqueue(note("third"))
        for count in range(1, 4):
            loop.turn()
            assert len(order) == count
        assert order == ["first", "second", "third"]


def test_exception_of_one_does_not_stop_the_others() -> None:
    def fail() -> None:
        raise RuntimeError("on purpose")

    loop = StillLoop()
    with loop:
        order, note = resumed(loop)
        waiting = Slice()
        waiting.enqueue(fail)
        waiting.enqueue(note("other"))
        loop.run_due()
        assert order == ["other"]
        assert len(loop.errors) == 1
        loop.errors.clear()


def test_waiting_for_the_next_slice_can_be_cancelled() -> None:
    with StillLoop() as loop:
        waiting = Slice()
        task = loop.create_task(waiting.next())
        loop.turn()
        task.cancel()
        loop.run_due()
        assert task.cancelled()
        again = loop.start(waiting.next())
        assert again.done()
