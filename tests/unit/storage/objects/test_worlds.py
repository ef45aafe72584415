"""Small worlds where everything goes wrong at once: no flushed block is lost, no state is mixed."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from aiovblk.storage.objects.extents import ExtentMap
from aiovblk.storage.objects.writer import Writer

from ....support.object_store_worlds import run_world
from ....support.sizes import by_size
from ....support.world_model import BLOCK

pytestmark = [pytest.mark.slow, pytest.mark.one_loop, pytest.mark.deadline(600)]

WORLDS, GROUPS = by_size(100, 5000), 20


@pytest.mark.parametrize("group", range(GROUPS))
def test_no_world_goes_wrong(group: int) -> None:
    for seed in range(group, WORLDS, GROUPS):
        try:
            run_world(seed)
        except Exception as exc:
            exc.add_note(f"world {seed}")
            raise


# A flush under way said the size of a shrink, and later of a grow, without the zeroes beyond it.
@pytest.mark.parametrize("seed", [861])
def test_worlds_that_went_wrong_do_not_again(seed: int) -> None:
    run_world(seed)


def places_of(extents: ExtentMap) -> dict[tuple[int, int], object]:
    found: dict[tuple[int, int], object] = {}
    for index, run in extents:
        for number in range(run.blocks):
            where: object = run.source, run.position + number
            if not isinstance(run.source, int):
                at = (run.position + number) * BLOCK
                where = bytes(run.source[at : at + BLOCK])
            elif not run.source:
                where = "zeroes"
            found[index, run.first + number] = where
    return found


@pytest.mark.parametrize("seed", range(20))
def test_history_is_always_what_the_writer_has_said(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each record the state is the writer's view at the moment when the record was made."""
    compared = 0
    commit = Writer._commit

    async def compare(self: Any) -> None:
        nonlocal compared
        chunks: array[int] = self._view.entries[:]
        extents = self._view.extents.copy()
        await commit(self)
        assert self._journal.state.chunks == chunks
        assert places_of(self._journal.state.extents) == places_of(extents)
        assert self._journal.state.extents.sizes == extents.sizes
        compared += 1

    monkeypatch.setattr(Writer, "_commit", compare)
    run_world(seed)
    assert compared
