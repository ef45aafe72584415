"""Open regions: all at first, few while writes stay in few, and how seldom that changes."""

from __future__ import annotations

from random import Random

from aiovblk.storage.tracked.regions import OpenRegions, runs_of

COUNT = 4096


class Program:
    """A program that writes to regions and flushes; it counts what that costs."""

    def __init__(self) -> None:
        self.regions = OpenRegions(COUNT)
        self.openings = self.closings = 0

    def write(self, region: int) -> None:
        if not self.regions.are_open(region, region):
            self.regions.want(region, region)
            self.regions.opened(self.regions.plan())
            self.openings += 1
        self.regions.use(region, region)

    def flush(self) -> None:
        if self.regions.should_close():
            self.regions.begin_closing()
            self.regions.finish_closing()
            self.closings += 1

    @property
    def open(self) -> list[tuple[int, int]]:
        return list(runs_of(self.regions.flags))


def test_first_write_opens_all() -> None:
    program = Program()
    program.write(17)
    assert program.open == [(0, COUNT)]


def test_regions_that_are_not_used_any_more_are_closed() -> None:
    program = Program()
    for _ in range(40):
        program.write(17)
        program.write(18)
        program.flush()
    assert program.open == [(17, 19)]
    assert (program.openings, program.closings) == (1, 1)


def test_more_are_opened_each_time() -> None:
    program = Program()
    for _ in range(40):
        program.write(0)
        program.flush()
    for region in range(0, COUNT, 2):
        program.write(region)
    assert program.open == [(0, COUNT)]
    assert program.openings <= 8


def test_writes_everywhere_close_nothing() -> None:
    program, random = Program(), Random(1)
    for _ in range(20_000):
        program.write(random.randrange(COUNT))
        program.flush()
    assert (program.openings, program.closings) == (1, 0)


def test_writes_that_wander_cost_little() -> None:
    program, random, flushes = Program(), Random(1), 20_000
    for number in range(flushes):
        program.write((number // 50 + random.randrange(3)) % COUNT)
        program.flush()
    assert program.openings + program.closings <= flushes * 8 // 32


def test_bits_that_are_set_while_regions_are_closed_keep_theirs_open() -> None:
    program = Program()
    program.write(5)
    program.regions.begin_closing()
    program.write(9)
    program.regions.finish_closing()
    assert program.open == [(5, 6), (9, 10)]


def test_regions_beyond_the_end_are_not_opened() -> None:
    """A request that was made before the device shrank asks for them."""
    regions = OpenRegions(4)
    regions.want(2, 9)
    regions.opened(regions.plan())
    assert list(runs_of(regions.flags)) == [(0, 4)]
