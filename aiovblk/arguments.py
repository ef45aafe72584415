"""Validate numeric arguments: counts, seconds, block sizes.

An invalid number is refused where it is passed, by a message with its name and limits: ``nan``
compares false with everything and passes most checks by accident, ``inf`` and huge numbers overflow
later, in the event loop or in the kernel.
"""

from __future__ import annotations

MAX_SECONDS = 1e9
"""Seconds of the longest timeout, about 30 years. Event loops and the kernel count milliseconds or
nanoseconds in 64 bits, and ``threading.TIMEOUT_MAX`` is 292 years."""

MAX_WORKERS = 1024
"""Most processes, or connections of one device: more than any machine has processors for. Each uses
descriptors and memory, so that a typing error could exhaust those of the machine."""

MAX_BUSY_POLL = 1_000_000
"""Microseconds of the longest busy polling: one second. Beyond some hundred it saves no more."""

MAX_BLOCK_SIZE = 64 * 1024
"""Bytes of the largest block that the NBD specification allows ("Block size constraints")."""


def check_seconds(name: str, value: float | None, *, zero: bool = False) -> None:
    """Validate a timeout or another duration in seconds.

    Args:
        name: the name of the argument, for the message.
        value: seconds; None is accepted, for arguments that may be without a limit.
        zero: whether 0 is accepted.

    Raises:
        TypeError: not a number.
        ValueError: not finite, negative, zero, or more than :data:`MAX_SECONDS`.

    """
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    # NaN compares false, so it is refused here.
    if not (0 < value <= MAX_SECONDS or (zero and value == 0)):
        kind = "0 or a positive" if zero else "a positive"
        raise ValueError(
            f"{name} must be {kind} number of seconds, {MAX_SECONDS:.0f} at most, not {value}"
        )


def check_count(
    name: str, value: int | None, *, minimum: int = 1, maximum: int | None = None
) -> None:
    """Validate a whole number within limits; None is accepted.

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
    """Validate a block size: a power of two within limits; None is accepted.

    Raises:
        TypeError: not an int.
        ValueError: not a power of two, or out of range.

    """
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number of bytes, not {value!r}")
    if not minimum <= value <= maximum or value & (value - 1):
        raise ValueError(f"{name} must be a power of two from {minimum} to {maximum}, not {value}")
