"""A bar that shows how far a command has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int, unit: str, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """Show a bar on a terminal, if the package for it is there.

    Args:
        total: how much there is to do, in ``unit``.
        unit: ``B`` for bytes.
        shown: whether it is wanted.

    Yields:
        What is called with how much has been done since it was last called.

    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # it comes with aiovblk[cli]
        yield lambda count: None
        return
    # On a terminal only, unless it is not wanted at all.
    disable = None if shown else True
    with tqdm(total=total, unit=unit, unit_scale=True, unit_divisor=1024, disable=disable) as bar:
        yield bar.update
