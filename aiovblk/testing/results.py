"""Whether what a handler returns is what the contract asks for."""

from __future__ import annotations

from collections.abc import Sequence

from ..device import Extent


def checked_view(data: object, length: int) -> memoryview:
    """What a read has returned, byte by byte.

    Raises:
        CheckFailed: it is of the wrong type or length.

    """
    try:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # it is what is found out
    except TypeError:
        raise CheckFailed(f"returned {_short(data)}, not contiguous bytes") from None
    if len(view) != length:
        raise CheckFailed(f"returned {len(view)} bytes instead of {length}")
    return view


def checked_extents(extents: object, block_size: int) -> Sequence[Extent]:
    """What extents has returned.

    Raises:
        CheckFailed: there are none, or it is nothing of the kind.

    """
    try:
        several = [Extent(*each) for each in extents]  # type: ignore[attr-defined]  # that, too
    except TypeError:
        raise CheckFailed(f"returned {_short(extents)}, not a sequence of extents") from None
    if not several:
        raise CheckFailed("returned no extent at all")
    for each in several:
        if not isinstance(each.length, int) or each.length < 1 or each.length % block_size:
            raise CheckFailed(f"returned {each}, whose length is no number of blocks")
    return several


def _short(thing: object) -> str:
    text = repr(thing)
    return text if len(text) < 80 else text[:77] + "..."


class CheckFailed(AssertionError):  # noqa: N818 (it is no error of this library's)
    """A device breaks the contract of :class:`aiovblk.BlockDevice`.

    Attributes:
        reason: what was wrong.
        request: which request showed it, in words; None if it was not one.
        seed: of the check that found it.
        round: which round of that check, counted from 0; None before the first.

    """

    def __init__(self, reason: str, request: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.request = request
        self.seed: int | None = None
        self.round: int | None = None

    def __str__(self) -> str:
        """All that is known of it."""
        where = "at the start" if self.round is None else f"in round {self.round}"
        request = f"{self.request}: " if self.request else ""
        return f"with seed {self.seed}, {where}: {request}{self.reason}"
