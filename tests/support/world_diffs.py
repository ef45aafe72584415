"""What differs between the states of a world, by the code and by the stamps of all blocks."""

from __future__ import annotations

from itertools import product

from aiovblk.storage.objects import diff

from .world_model import BLOCK, WrongError
from .world_store import WorldClient

States = dict[tuple[str, str | None], list[int]]
"""By folder, and name of the snapshot: the stamp of each block, and the size."""


async def verify_diffs(client: WorldClient, key: bytes | None, states: States) -> None:
    """Verify that no difference between two states is missing, nor zeroes that are none.

    Raises:
        WrongError: one is.

    """
    for (old_path, since), (path, name) in product(states, states):
        old, new = states[old_path, since], states[path, name]
        found = await diff(client, path, snapshot=name, since=since, since_path=old_path, key=key)
        what = f"{path} {name} since {old_path} {since}"
        if (found.since_size, found.size) != (old[-1], new[-1]):
            raise WrongError(f"{what}: the sizes are {found.since_size} and {found.size}")
        changed: set[int] = set()
        async for each in found:
            blocks = range(each.offset // BLOCK, (each.offset + each.length) // BLOCK)
            changed.update(blocks)
            if each.zero and any(new[block] for block in blocks):
                raise WrongError(f"{what}: {each} is not zero")
        for block in range(new[-1] // BLOCK):
            if old[block] != new[block] and block not in changed:
                raise WrongError(f"{what}: block {block} is missing")
