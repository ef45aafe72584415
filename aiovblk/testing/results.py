"""Check the results of handlers against the contract, and report failures: CheckFailed."""

from __future__ import annotations

from collections.abc import Sequence

from ..device import Extent


def checked_view(data: object, length: int) -> memoryview:
    """Return the result of a read as a view of bytes.

    Raises:
        CheckFailed: the type or length is wrong.

    """
    try:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # which is checked here
    except TypeError:
        raise CheckFailed(f"returned {_short(data)}, not contiguous bytes") from None
    if len(view) != length:
        raise CheckFailed(f"returned {len(view)} bytes instead of {length}")
    return view


def checked_extents(extents: object, block_size: int) -> Sequence[Extent]:
    """Return the result of extents.

    Raises:
        CheckFailed: it is empty, or no sequence of extents of whole blocks.

    """
    try:
        several = [Extent(*each) for each in extents]  # type: ignore[attr-defined]  # likewise
    except TypeError:
        raise CheckFailed(f"returned {_short(extents)}, not a sequence of extents") from None
    if not several:
        raise CheckFailed("returned no extent at all")
    for each in several:
        if not isinstance(each.length, int) or each.length < 1 or each.length % block_size:
            raise CheckFailed(f"returned {each}, whose length is no multiple of the block size")
    return several


def _short(thing: object) -> str:
    text = repr(thing)
    return text if len(text) < 80 else text[:77] + "..."


class CheckFailed(AssertionError):  # noqa: N818 (not an error of this library)
    """A device breaks the contract of :class:`aiovblk.BlockDevice`.

    Attributes:
        reason: what was wrong.
        request: the request that showed it, as text; None if it was none.
        seed: of the check.
        round: the round of the check, counted from 0; None before the first.

    """

    def __init__(self, reason: str, request: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.request = request
        self.seed: int | None = None
        self.round: int | None = None

    def __str__(self) -> str:
        """Format seed, round, request and reason."""
        where = "at the start" if self.round is None else f"in round {self.round}"
        request = f"{self.request}: " if self.request else ""
        return f"with seed {self.seed}, {where}: {request}{self.reason}"
