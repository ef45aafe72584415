"""Small worlds that crash: no changed block that a bitmap lacks."""

from __future__ import annotations

from collections import Counter

import pytest

from ....support.sizes import by_size
from ....support.tracked_worlds import run_world

pytestmark = [pytest.mark.slow, pytest.mark.one_loop, pytest.mark.deadline(900)]

WORLDS, GROUPS = by_size(400, 10_000), 10


@pytest.mark.parametrize("group", range(GROUPS))
def test_no_world_goes_wrong(group: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(group, WORLDS, GROUPS):
        try:
            seen += run_world(seed)
        except Exception as exc:
            exc.add_note(f"world {seed}")
            raise
    # The worlds are not empty, and the answers not always "everything".
    for what in ("points", "kills", "power failures", "clean ends", "resizes"):
        assert seen[what], what
    assert 0 < seen["partial answers"] < seen["answers"]
