"""Many processes that race for free devices: each gets one of its own, or is told why not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from aiovblk.kernel import sysfs

from .racers import AT_ONCE
from .support import becomes_true, program, sh

RACERS = int(os.environ.get("AIOVBLK_RACERS", "64"))
"""How many in all; 500 take minutes where the processor is emulated."""

FEW = 5
PATHS = [f"/dev/nbd{index}" for index in range(FEW)]

BUSY = [
    "already attached, served by process",
    "the device is just being attached or detached",
    "attached by a program that has ended",  # and that its watchdog has not freed yet
    "the device is in use",
]

pytestmark = [pytest.mark.deadline(1200), pytest.mark.one_loop, pytest.mark.newest_python]


class Outcomes:
    """What came of each."""

    def __init__(self, lines: list[str]) -> None:
        self.got: dict[int, int] = {}
        self.refused: dict[int, str] = {}
        self.failed: list[str] = []
        for line in lines:
            number, what, rest = [*line.split(" ", 2), "", ""][:3]
            if what == "got":
                self.got[int(number)] = int(rest)
            elif what == "refused":
                self.refused[int(number)] = rest
            else:  # or anything that somebody has to say
                self.failed.append(line)


async def race(how: str, mode: str, count: int, *paths: str) -> Outcomes:
    words = ["-m", "tests.kernel.racers", how, mode, str(count), *paths]
    async with program(*words) as racers:
        assert racers.process.stdout is not None
        output = (await racers.process.stdout.read()).decode()
        assert await racers.end() == 0
    outcomes = Outcomes(output.splitlines())
    assert not outcomes.failed, "\n".join(outcomes.failed)
    assert {*outcomes.got, *outcomes.refused} == set(range(count))
    assert len(outcomes.got) + len(outcomes.refused) == count
    # Those of the killed ones too, as soon as that has been noticed.
    await becomes_true(lambda: all(map(sysfs.is_free, sysfs.indices())))
    return outcomes


async def test_where_there_are_enough_each_gets_one(attach: str) -> None:
    count = RACERS * 2 // 5
    outcomes = await race(attach, "rolling", count)
    assert outcomes.refused == {}


async def test_of_those_who_want_the_same_ones_some_are_told_who_has_it(attach: str) -> None:
    count = RACERS * 3 // 10
    outcomes = await race(attach, "rounds", count, *PATHS)
    assert set(outcomes.got.values()) <= set(range(FEW))
    for begin in range(0, count, AT_ONCE):
        together = range(begin, min(begin + AT_ONCE, count))
        indices = Counter(outcomes.got[each] for each in together if each in outcomes.got)
        assert set(indices.values()) <= {1}  # since they had them all at the same time
    for reason in outcomes.refused.values():
        assert reason.startswith("DeviceBusyError: /dev/nbd"), reason
        assert any(each in reason for each in BUSY), reason


@pytest.fixture
async def few_devices() -> AsyncIterator[None]:
    """A driver that has no more than these."""
    await sh(f"modprobe -r nbd && modprobe nbd nbds_max={FEW}")
    yield
    await sh("modprobe -r nbd && modprobe nbd nbds_max=64")


@pytest.mark.usefixtures("few_devices")
async def test_where_there_are_too_few_the_others_are_told_so(attach: str) -> None:
    count = RACERS * 3 // 10
    outcomes = await race(attach, "rounds", count)
    for begin in range(0, count, AT_ONCE):
        together = range(begin, min(begin + AT_ONCE, count))
        had = [outcomes.got[each] for each in together if each in outcomes.got]
        assert len(had) == len(set(had))
        if attach == "netlink":
            assert len(had) == len(together)  # the kernel makes more
        else:
            assert set(had) <= set(range(FEW))
    for reason in outcomes.refused.values():
        assert reason.startswith("NBDUnavailableError: "), reason
        assert f"all {FEW} NBD devices are in use" in reason
