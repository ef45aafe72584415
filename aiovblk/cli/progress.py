"""Show a progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int, unit: str, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """Show a progress bar if stderr is a terminal and tqdm is installed.

    Args:
        total: how much there is to do, in ``unit``; 0 if that is not known.
        unit: ``B`` for bytes.
        shown: False for no bar.

    Yields:
        A function to call with the amount that was done since its last call.

    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # it comes with aiovblk[cli]
        yield lambda count: None
        return
    # None: on a terminal only.
    disable = None if shown else True
    with tqdm(total=total, unit=unit, unit_scale=True, unit_divisor=1024, disable=disable) as bar:
        yield bar.update
