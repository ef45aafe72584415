"""Which backups are kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from aiovblk.storage.backup import Backup, Keep
from aiovblk.storage.backup.states import free_name, name_of

MONDAY = datetime(2026, 8, 31, 3, tzinfo=UTC)


def backup(time: datetime) -> Backup:
    seconds = time.timestamp()
    return Backup(name_of(seconds), seconds, 4096, "disk", None)


def days_kept(keep: Keep, times: list[datetime]) -> list[str]:
    """Return the times that are kept, as month and day and hour."""
    kept = keep.select([backup(time) for time in times])
    return [f"{time:%m-%d %H}" for time in times if name_of(time.timestamp()) in kept]


NIGHTS = [MONDAY + timedelta(days=number) for number in range(40)]  # up to Friday, October 9


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(last=2), ["10-08 03", "10-09 03"]),
        (Keep(daily=3), ["10-07 03", "10-08 03", "10-09 03"]),
        # The newest of each week: Sundays, and the present week's.
        (Keep(weekly=3), ["09-27 03", "10-04 03", "10-09 03"]),
        (Keep(monthly=3), ["08-31 03", "09-30 03", "10-09 03"]),
        (Keep(yearly=5), ["10-09 03"]),
        (
            Keep(daily=3, weekly=3),
            ["09-27 03", "10-04 03", "10-07 03", "10-08 03", "10-09 03"],
        ),
        # Hours without a backup do not count.
        (Keep(hourly=2), ["10-08 03", "10-09 03"]),
        (Keep(daily=1000), [f"{night:%m-%d %H}" for night in NIGHTS]),
    ],
)
def test_nightly_backups(keep: Keep, expected: list[str]) -> None:
    assert days_kept(keep, NIGHTS) == expected


@pytest.mark.parametrize("keep", [Keep(last=2), Keep(daily=2), Keep(yearly=2)])
def test_backup_after_the_clock_was_set_back_is_the_newest(keep: Keep) -> None:
    wrong = MONDAY + timedelta(days=3000)
    times = [MONDAY, wrong, MONDAY + timedelta(days=1)]
    assert days_kept(keep, times) == [f"{wrong:%m-%d %H}", "09-01 03"]
    assert days_kept(Keep(last=1), times) == ["09-01 03"]


def test_newest_of_a_period_is_kept() -> None:
    hours = [MONDAY + timedelta(hours=number) for number in range(30)]
    assert days_kept(Keep(daily=2), hours) == ["08-31 23", "09-01 08"]
    assert days_kept(Keep(hourly=2, daily=2), hours) == ["08-31 23", "09-01 07", "09-01 08"]


def test_periods_without_a_backup_do_not_count() -> None:
    times = [MONDAY, MONDAY + timedelta(days=400), MONDAY + timedelta(days=401)]
    assert len(days_kept(Keep(daily=3), times)) == 3
    assert days_kept(Keep(weekly=2), times) == ["08-31 03", "10-06 03"]


def test_weeks_are_those_of_iso_8601_across_a_year() -> None:
    sunday, monday = datetime(2027, 1, 3, tzinfo=UTC), datetime(2027, 1, 4, tzinfo=UTC)
    thursday = datetime(2026, 12, 31, tzinfo=UTC)
    assert days_kept(Keep(weekly=5), [thursday, sunday, monday]) == ["01-03 00", "01-04 00"]


def test_newest_is_kept_whatever_the_rules() -> None:
    assert days_kept(Keep(yearly=1), [MONDAY]) == ["08-31 03"]
    assert Keep(daily=7).select([]) == set()


def test_of_the_same_second_the_later_is_the_newer() -> None:
    first = backup(MONDAY)
    names = [first.name, f"{first.name}-2"]
    both = [Backup(name, first.time + number, 1, "", None) for number, name in enumerate(names)]
    assert Keep(daily=1).select(both) == {names[1]}


@pytest.mark.parametrize("rules", [{}, {"daily": 0}, {"daily": -1}, {"weekly": 1, "last": -2}])
def test_rules_that_cannot_be_are_refused(rules: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"say how many|must be"):
        Keep(**rules)


def test_name_is_not_used_twice() -> None:
    time = MONDAY.timestamp()
    first = free_name(time, [])
    assert first == "20260831T030000Z"
    assert free_name(time, [first, "monday"]) == f"{first}-2"
    assert free_name(time, [f"{first}-2"]) == f"{first}-3"
    assert free_name(time + 1, [first]) == "20260831T030001Z"
