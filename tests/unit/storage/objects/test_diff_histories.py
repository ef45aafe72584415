"""What differs between two states, in random histories: nothing is missing, and no more is found.

No more than was written, or moved by the compactor, in the granularity that is said.
"""

from __future__ import annotations

import pytest

from ....support.diff_histories import History
from ....support.sizes import by_size

GROUPS = 10

pytestmark = [pytest.mark.slow, pytest.mark.one_loop, pytest.mark.deadline(600)]


@pytest.mark.parametrize("compacts", [False, True], ids=["as written", "compacted"])
@pytest.mark.parametrize("group", range(GROUPS))
async def test_no_difference_is_missed(group: int, *, compacts: bool) -> None:
    for seed in range(group, by_size(60, 3000), GROUPS):
        try:
            await History(seed, compacts=compacts).run(40)
        except BaseException as exc:
            exc.add_note(f"history {seed}")
            raise
