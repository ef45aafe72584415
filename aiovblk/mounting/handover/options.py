"""The options of a mount that have to do with other processes: who may take the device over."""

from __future__ import annotations

from dataclasses import dataclass

from ...arguments import check_seconds

MAX_IDENTITY = 255
"""Characters of the longest identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Whether another process may take the device over, and whether this one takes one over.

    Attributes:
        identity: the name by which another process finds the device; None if none is to.
        survive: seconds for which I/O blocks, should this process end without unmounting the
            device, until another process serves it; None for not at all.
        replace: whether to ask a live server of this identity to hand the device over.

    Raises:
        TypeError: ``survive`` is not a number.
        ValueError: ``survive`` is out of range; it or ``replace`` lacks an identity; or the
            identity is too long, or has characters that /sys cannot show in one line.

    """

    identity: str | None = None
    survive: float | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        check_seconds("survive", self.survive)
        identity = self.identity
        if identity is None:
            if self.survive is not None or self.replace:
                name = "replace" if self.replace else "survive"
                raise ValueError(
                    f"{name} takes an identity, by which the device is found again:"
                    " add identity='some-name'"
                )
            return
        # /sys shows it as one line.
        fits = 0 < len(identity) <= MAX_IDENTITY and identity.isprintable()
        if not fits or identity.strip() != identity:
            raise ValueError(
                f"an identity has 1 to {MAX_IDENTITY} printable characters, and no space around"
                f" them: {identity!r}"
            )


NO_HANDOVER = Handover()
