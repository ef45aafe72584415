"""Retention: which backups are kept, by the hour, day, week, month and year that they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime

from ...arguments import check_count
from .states import Backup

_PERIODS: dict[str, Callable[[datetime], object]] = {
    "hourly": lambda time: (time.date(), time.hour),
    "daily": lambda time: time.date(),
    "weekly": lambda time: time.isocalendar()[:2],
    "monthly": lambda time: (time.year, time.month),
    "yearly": lambda time: time.year,
}


@dataclass(frozen=True, slots=True)
class Keep:
    """How many backups are kept: the newest of each of the last so many hours, days and so on.

    Only periods that have a backup count, so that a machine that was off for a month loses none.
    Periods are those of UTC, and weeks begin on Monday (ISO 8601). A backup that one rule keeps is
    kept. The newest is always kept: the next one is made by what differs from it. Newest means made
    last, whatever the clock said: it may have been set back since an earlier one was made.

    Raises:
        TypeError, ValueError: a number is out of range, or all are 0.

    """

    last: int = 0
    """The newest ones, of whatever time."""
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __post_init__(self) -> None:
        """Validate the numbers."""
        for each in fields(self):
            check_count(each.name, getattr(self, each.name), minimum=0)
        if not any(getattr(self, each.name) for each in fields(self)):
            raise ValueError("say how many backups are to be kept: daily=7, for example")

    def select(self, backups: Sequence[Backup]) -> set[str]:
        """Return the names of those that are kept.

        Args:
            backups: in the order in which they were made.

        """
        newest_first = backups[::-1]
        kept = {each.name for each in newest_first[: max(self.last, 1)]}
        for rule, period_of in _PERIODS.items():
            newest: dict[object, str] = {}
            for each in newest_first:
                newest.setdefault(period_of(datetime.fromtimestamp(each.time, UTC)), each.name)
            kept |= set(list(newest.values())[: getattr(self, rule)])
        return kept
