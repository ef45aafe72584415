"""Checks of the numbers that callers give: counts, seconds, sizes of blocks.

A number that cannot be is refused where it is given, by a message that says its name and its
limits: ``nan`` compares false with everything and passes most checks by accident, ``inf`` and huge
numbers overflow later, in the event loop or in the kernel.
"""

from __future__ import annotations

MAX_SECONDS = 1e9
"""Seconds of the longest limit, about 30 years. Event loops and the kernel count milliseconds or
nanoseconds in 64 bits, and ``threading.TIMEOUT_MAX`` is 292 years."""

MAX_WORKERS = 1024
"""Processes, or connections of one device: more than any machine has processors for. Each takes
descriptors and memory, so a slip of the pen would take the machine's."""

MAX_BLOCK_SIZE = 64 * 1024
"""Bytes of the largest block that the NBD specification allows ("Block size constraints")."""


def check_seconds(name: str, value: float | None, *, zero: bool = False) -> None:
    """Refuse what is no time limit.

    Args:
        name: of the argument.
        value: seconds; None is taken, for those that have no limit.
        zero: whether 0 is taken.

    Raises:
        TypeError: not a number.
        ValueError: not finite, negative, zero, or more than :data:`MAX_SECONDS`.

    """
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    # Not a number is in no range.
    if not (0 < value <= MAX_SECONDS or (zero and value == 0)):
        kind = "0 or a positive" if zero else "a positive"
        raise ValueError(
            f"{name} must be {kind} number of seconds, {MAX_SECONDS:.0f} at most, not {value}"
        )


def check_count(
    name: str, value: int | None, *, minimum: int = 1, maximum: int | None = None
) -> None:
    """Refuse what is no whole number in these limits; None is taken.

    Raises:
        TypeError: not an int.
        ValueError: out of range.

    """
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if maximum is not None and not minimum <= value <= maximum:
        raise ValueError(f"{name} must be from {minimum} to {maximum}, not {value}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}")


def check_block_size(
    value: int | None, *, name: str = "block_size", minimum: int = 1, maximum: int = MAX_BLOCK_SIZE
) -> None:
    """Refuse what is no size of a block; None is taken.

    Raises:
        TypeError: not an int.
        ValueError: no power of two, or out of range.

    """
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number of bytes, not {value!r}")
    if not minimum <= value <= maximum or value & (value - 1):
        raise ValueError(f"{name} must be a power of two from {minimum} to {maximum}, not {value}")
