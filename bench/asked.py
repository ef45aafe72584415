"""The bounds that the project sets itself, and whether they are met."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from .cases import (
    BIG_DEEP,
    BIG_READ,
    BIG_WRITE,
    FIO,
    HEAVY,
    KERNEL_READ,
    KERNEL_READ_QD1,
    KERNEL_WRITE,
    KERNEL_WRITE_QD1,
    READ,
    READ_QD1,
    SLOW,
    WRITE,
    Case,
)
from .footprint import DEEP, Footprint
from .peers.ours import SLICES, SUBJECT, TWO_WORKERS, USERS, at_revision
from .placement import BOTH, Placement
from .summary import Key, Samples

MEMORY, PYTHON, LIMIT = "nbdkit memory", "nbdkit Python, parallel", "bare C loop"
OLDEST = "aiovblk, Python 3.11"
FIGURES = {"server_cpu": "CPU", "iops": "requests per second"}
MOST_KIB = 2048  # what counts as no growth
_FIO_READ, _FIO_WRITE, _FIO_READ_QD1 = FIO


@dataclass(frozen=True, slots=True)
class Bound:
    """The ratio of one peer's figure to another's, and what it may be."""

    figure: str
    case: Case
    placement: Placement
    limit: float
    subject: str = SUBJECT
    peer: str = MEMORY

    @property
    def at_most(self) -> bool:
        """Whether less is better."""
        return self.figure == "server_cpu"

    def words(self) -> str:
        """What is asked."""
        sign = "at most" if self.at_most else "at least"
        what = f"{FIGURES[self.figure]}, {self.case.name}, {self.placement.value}"
        who = "" if self.subject == SUBJECT else f"{self.subject}: "
        return f"{who}{what}: {sign} {self.limit:g} of {self.peer}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bound held against what was measured; ``met`` is None where nothing was."""

    asked: str
    found: str
    met: bool | None


def _pairs(figure: str, case: Case, one_core: float, core_each: float) -> list[Bound]:
    limits = (one_core, core_each)
    return [Bound(figure, case, *each) for each in zip(BOTH, limits, strict=True)]


BOUNDS = [
    *_pairs("server_cpu", READ, 0.85, 0.7),
    *_pairs("server_cpu", WRITE, 0.9, 0.9),
    *_pairs("server_cpu", READ_QD1, 1.4, 1.3),
    *_pairs("iops", READ, 1.4, 1.3),
    *_pairs("iops", WRITE, 1.0, 1.1),
    *_pairs("iops", READ_QD1, 0.75, 0.6),
    *_pairs("server_cpu", BIG_READ, 0.6, 0.75),
    *_pairs("server_cpu", BIG_WRITE, 1.2, 1.1),
    Bound("server_cpu", _FIO_READ, Placement.ONE_CORE, 1.0),
    Bound("server_cpu", _FIO_WRITE, Placement.ONE_CORE, 1.05),
    Bound("server_cpu", _FIO_READ_QD1, Placement.ONE_CORE, 1.3),
    *(
        Bound("server_cpu", case, placement, 1.2, subject)
        for case in (BIG_READ, BIG_DEEP)
        for subject in (USERS, SLICES)
        for placement in BOTH
    ),
    Bound("iops", HEAVY, Placement.ANY_CORE, 1.7, TWO_WORKERS, SUBJECT),
    *(
        Bound("server_cpu", case, placement, 1.6, OLDEST, SUBJECT)
        for case in (READ, WRITE, READ_QD1)
        for placement in BOTH
    ),
]


def bounds_against(revision: str) -> list[Bound]:
    """What is asked of a tree beside an earlier one."""
    other = at_revision(revision)
    return [
        *(Bound("server_cpu", SLOW, placement, 0.75, peer=other) for placement in BOTH),
        *(
            Bound("iops", case, Placement.KERNEL, limit, peer=other)
            for case, limit in (
                (KERNEL_READ_QD1, 1.3),
                (KERNEL_WRITE_QD1, 1.3),
                (KERNEL_READ, 1.2),
                (KERNEL_WRITE, 1.2),
            )
        ),
    ]


def judge(
    samples: Samples, kernel: Samples, footprint: Footprint | None, revision: str | None = None
) -> list[Verdict]:
    """Hold what was measured on sockets and in the kernel against all bounds."""
    bounds = chain(BOUNDS, bounds_against(revision) if revision else ())
    verdicts = [
        _ratio(kernel if bound.placement is Placement.KERNEL else samples, bound)
        for bound in bounds
    ]
    return [*verdicts, *_footprint(footprint)]


def _ratio(samples: Samples, bound: Bound) -> Verdict:
    key = Key(bound.case.name, bound.placement, bound.subject)
    ratio = samples.ratio(key, bound.peer, bound.figure)
    if ratio is None:
        return Verdict(bound.words(), "not measured", None)
    met = ratio <= bound.limit if bound.at_most else ratio >= bound.limit
    return Verdict(bound.words(), f"{ratio:.2f}", met)


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
