"""The bounds that the project sets itself, and whether they are met."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .cases import (
    BIG_READ,
    BIG_WRITE,
    DELAY,
    HEAVY,
    KERNEL_READ,
    KERNEL_READ_QD1,
    KERNEL_WRITE,
    KERNEL_WRITE_QD1,
    READ,
    SLOW,
    WRITE,
    Case,
)
from .footprint import DEEP, Footprint
from .summary import NOTHING, Summary

MEMORY, PYTHON, LIMIT = "nbdkit memory", "nbdkit Python, parallel", "bare C loop"
SERIAL = "C, one request at a time"


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure's ratio to a peer's, and what it may be."""

    figure: str
    case: Case
    peer: str
    limit: float
    at_most: bool
    place: str = ""

    def words(self) -> str:
        """What is asked."""
        what = {"server_cpu": "server CPU", "iops": "requests per second"}[self.figure]
        sign = "at most" if self.at_most else "at least"
        return f"{self.place}{what}, {self.case.name}: {sign} {self.limit:g} of {self.peer}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bound held against what was measured; ``met`` is None where nothing was."""

    asked: str
    found: str
    met: bool | None


BOUNDS = [
    *(
        Bound("server_cpu", case, peer, limit, at_most=True)
        for case in (READ, WRITE)
        for peer, limit in ((MEMORY, 0.6), (PYTHON, 0.2), (LIMIT, 2.2))
    ),
    *(
        Bound("server_cpu", case, peer, limit, at_most=True)
        for case in (BIG_READ, BIG_WRITE)
        for peer, limit in ((MEMORY, 0.8), (LIMIT, 1.5))
    ),
    *(
        Bound("iops", case, peer, limit, at_most=False)
        for case in (READ, WRITE)
        for peer, limit in ((MEMORY, 1.5), (PYTHON, 4.0))
    ),
    Bound("iops", SLOW, PYTHON, 5.0, at_most=False),
]

KERNEL_BOUNDS = [
    Bound("iops", case, peer, limit, at_most=False, place="in the kernel: ")
    for case, peer, limit in (
        (KERNEL_READ_QD1, MEMORY, 0.65),
        (KERNEL_READ_QD1, SERIAL, 0.95),
        (KERNEL_WRITE_QD1, MEMORY, 0.65),
        (KERNEL_WRITE_QD1, SERIAL, 0.95),
        (KERNEL_READ, MEMORY, 1.3),
        (KERNEL_READ, SERIAL, 1.25),
        (KERNEL_WRITE, MEMORY, 1.3),
        (KERNEL_WRITE, SERIAL, 3.0),
    )
]

OF_POSSIBLE = 0.8
BY_TWO_WORKERS = 1.7
OF_NEWEST = 1.6
OLDEST_PYTHON, NEWEST_PYTHON = "3.11", "3.13"
MOST_KIB = 2048  # what counts as no growth


def judge(
    summary: Summary,
    footprint: Footprint | None,
    subject: str,
    processors: int,
    kernel: Summary = NOTHING,
) -> list[Verdict]:
    """Hold what was measured of one peer, on sockets and in the kernel, against all bounds."""
    verdicts = [_ratio(summary, subject, bound) for bound in BOUNDS]
    verdicts.append(_waiting(summary, subject, processors))
    verdicts += _footprint(footprint)
    verdicts += [_workers(summary, subject, processors), _oldest(summary, subject)]
    return verdicts + [_ratio(kernel, subject, bound) for bound in KERNEL_BOUNDS]


def possible_iops(server_cpu: float, client_cpu: float, processors: int) -> float:
    """Requests per second of the slow back end that depth and CPU time allow.

    On one processor the client's time comes on top of the server's.
    """
    cpu = server_cpu + client_cpu if processors == 1 else max(server_cpu, client_cpu)
    return min(SLOW.depth / DELAY, 1e6 / cpu)


def _ratio(summary: Summary, subject: str, bound: Bound) -> Verdict:
    ratio = summary.ratio(bound.case.name, subject, bound.peer, bound.figure)
    if ratio is None:
        return Verdict(bound.words(), "not measured", None)
    met = ratio <= bound.limit if bound.at_most else ratio >= bound.limit
    return Verdict(bound.words(), f"{ratio:.2f}", met)


def _waiting(summary: Summary, subject: str, processors: int) -> Verdict:
    asked = f"{SLOW.name}: at least {OF_POSSIBLE:g} of what depth and CPU time allow"
    figures = summary.figures.get(SLOW.name, {}).get(subject)
    if figures is None:
        return Verdict(asked, "not measured", None)
    possible = possible_iops(figures.server_cpu, figures.client_cpu, processors)
    part = figures.iops / possible
    found = f"{part:.2f} ({figures.iops:,.0f} of {possible:,.0f} per second)"
    return Verdict(asked, found, part >= OF_POSSIBLE)


def _workers(summary: Summary, subject: str, processors: int) -> Verdict:
    asked = f"{HEAVY.name}: two workers serve at least {BY_TWO_WORKERS:g} of what one process does"
    ratio = summary.ratio(HEAVY.name, f"{subject}, 2 workers", subject, "iops")
    if ratio is None or processors < 2:
        return Verdict(asked, "not measured", None)
    return Verdict(asked, f"{ratio:.2f}", ratio >= BY_TWO_WORKERS)


def _oldest(summary: Summary, subject: str) -> Verdict:
    asked = (
        f"Python {OLDEST_PYTHON}: at most {OF_NEWEST:g} of the CPU time of {NEWEST_PYTHON}, and at"
        f" least one {OF_NEWEST:g}th of its requests per second, on the same loop"
    )
    found = []
    for loop in ("uvloop", "asyncio"):
        old, new = (f"aiovblk {each} {loop}" for each in (OLDEST_PYTHON, NEWEST_PYTHON))
        for case in summary.figures:
            more_cpu = summary.ratio(case, old, new, "server_cpu")
            fewer = summary.ratio(case, new, old, "iops")
            if more_cpu is not None and fewer is not None:
                found += [(more_cpu, case, loop), (fewer, case, loop)]
    if not found or not subject.endswith("uvloop"):
        return Verdict(asked, "not measured", None)
    worst, case, loop = max(found)
    return Verdict(asked, f"{worst:.2f} at worst ({case}, {loop})", worst <= OF_NEWEST)


def _footprint(footprint: Footprint | None) -> Iterator[Verdict]:
    constant = "memory of an empty disk: the same for 64 MiB and 1 TiB"
    bounded = f"memory at {DEEP.name}: no more than what is in flight"
    steady = "memory: no growth over a million requests"
    if footprint is None:
        yield from (Verdict(asked, "not measured", None) for asked in (constant, bounded, steady))
        return
    more = footprint.large - footprint.small
    yield Verdict(constant, f"{_mib(more)} more", more <= MOST_KIB)
    # A reply or a payload is in flight once in our memory, and its bookkeeping with it.
    in_flight = DEEP.depth * DEEP.length // 1024
    more = footprint.deep - footprint.settled
    found = f"{_mib(more)} more, {_mib(in_flight)} in flight"
    yield Verdict(bounded, found, more <= in_flight + MOST_KIB)
    found = f"{_mib(footprint.growth)} more after {footprint.requests:,}"
    yield Verdict(steady, found, footprint.growth <= MOST_KIB)


def _mib(kib: int) -> str:
    return f"{kib / 1024:.1f} MiB"
