"""What a target may hold after unfinished runs."""

from __future__ import annotations

import pytest

from aiovblk.storage.backup.states import NOTHING, UNKNOWN, Backup, Progress, Region

FIRST = Backup("20260831T030000Z", 1.5, 100, "disk 1", "a")


def test_first_run_copies_everything() -> None:
    progress = Progress.after(None).begin("disk 1", "a")
    assert list(progress.regions(100)) == [Region(0, 100, (NOTHING,))]


def test_next_run_begins_with_the_newest_backup() -> None:
    progress = Progress.after(FIRST).begin("disk 1", "b")
    assert list(progress.regions(100)) == [Region(0, 100, ("a",))]
    assert progress.base == FIRST.name


def test_state_that_was_written_to_is_unknown() -> None:
    progress = Progress.after(FIRST, is_current=False).begin("disk 1", "b")
    assert list(progress.regions(100)) == [Region(0, 100, (UNKNOWN,))]


def test_interrupted_runs_leave_regions() -> None:
    progress = Progress.after(FIRST).begin("disk 1", "b").advance(60)
    again = progress.begin("disk 1", "c")
    # What b had copied holds b; behind it is still a, or in part b.
    assert list(again.regions(100)) == [Region(0, 60, ("b",)), Region(60, 100, ("a", "b"))]
    third = again.advance(20).advance(40).begin("disk 1", "d")
    assert list(third.regions(100)) == [
        Region(0, 40, ("c",)),
        Region(40, 60, ("b", "c")),
        Region(60, 100, ("a", "b", "c")),
    ]


def test_another_source_shares_no_points() -> None:
    progress = Progress.after(FIRST).begin("disk 1", "b").advance(60).begin("disk 2", "c")
    assert list(progress.regions(100)) == [
        Region(0, 60, (UNKNOWN,)),
        Region(60, 100, (UNKNOWN, UNKNOWN)),
    ]
    assert [*Progress.after(None).begin("disk 2", "c").regions(9)] == [Region(0, 9, (NOTHING,))]


def test_disk_that_has_grown_holds_nothing_there() -> None:
    progress = Progress.after(FIRST).resized(150, 100).begin("disk 1", "b")
    assert list(progress.regions(150)) == [
        Region(0, 100, ("a",)),
        Region(100, 150, (NOTHING, "a")),
    ]
    late = Progress.after(FIRST).begin("disk 1", "b").advance(60).resized(150, 100)
    assert list(late.begin("disk 1", "c").regions(150)) == [
        Region(0, 60, ("b",)),
        Region(60, 100, ("a", "b")),
        Region(100, 150, (NOTHING, "a", "b")),
    ]


def test_disk_that_has_shrunk_and_grown_holds_nothing_there() -> None:
    progress = Progress.after(FIRST).begin("disk 1", "b").advance(60)
    small = progress.resized(40, 100).begin("disk 1", "c")
    assert list(small.regions(40)) == [Region(0, 40, ("b",))]
    large = small.resized(100, 40).begin("disk 1", "d")
    assert list(large.regions(100)) == [
        Region(0, 40, ("b", "c")),
        Region(40, 100, (NOTHING, "a", "b", "c")),
    ]


def test_records_are_what_they_were() -> None:
    assert Backup.decode(FIRST.encode()) == FIRST
    progress = Progress.after(FIRST).begin("disk 1", None).advance(60)
    assert Progress.decode(progress.encode()) == progress


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"base":null,"source":"","points":["a"],"marks":[[1,1]]}']
)
def test_what_is_no_progress_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Progress.decode(data)
