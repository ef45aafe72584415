"""What a check ends in when a device breaks the contract."""

from __future__ import annotations


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
