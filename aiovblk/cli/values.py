"""Parse the values of options, for argparse; an impossible value is an error of usage."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable

from ..arguments import MAX_BLOCK_SIZE, check_block_size, check_seconds
from .errors import SpecError
from .sizes import parse_size


def count(*, minimum: int = 1, maximum: int = 2**31 - 1, step: int = 1) -> Callable[[str], int]:
    """Return a parser of whole numbers in this range that are multiples of ``step``."""

    def parse(text: str) -> int:
        # int() alone would accept 1_000 and digits of other scripts, and refuse thousands of digits
        # with a message of its own.
        digits = re.fullmatch(r"[+-]?[0-9]{1,20}", text.strip(), re.ASCII)
        number = int(text) if digits else minimum - 1
        if not minimum <= number <= maximum or number % step:
            kind = "a whole number" if step == 1 else f"a multiple of {step}"
            raise ArgumentTypeError(f"must be {kind} from {minimum} to {maximum}, not {text!r}")
        return number

    return parse


def seconds(text: str) -> float:
    """Parse a positive, finite number of seconds."""
    try:
        number = float(text)
        check_seconds("it", number)
    except ValueError:
        reason = f"must be a positive number of seconds, such as 30 or 0.5, not {text!r}"
        raise ArgumentTypeError(reason) from None
    return number


def pause(text: str) -> float:
    """Parse a finite number of seconds, which may be 0."""
    try:
        number = float(text)
        check_seconds("it", number, zero=True)
    except ValueError:
        reason = f"must be 0 or a positive number of seconds, not {text!r}"
        raise ArgumentTypeError(reason) from None
    return number


def choice(*known: str) -> Callable[[str], str]:
    """Return a parser of one of these words."""

    def parse(text: str) -> str:
        if text not in known:
            raise ArgumentTypeError(f"must be one of {', '.join(known)}, not {text!r}")
        return text

    return parse


def flag(text: str) -> bool:
    """Parse ``yes`` or ``no``."""
    return choice("yes", "no")(text) == "yes"


def offset(text: str) -> int:
    """Parse a number of bytes, such as ``64M``, which may be 0."""
    try:
        return parse_size(text)
    except SpecError as exc:
        raise ArgumentTypeError(str(exc)) from None


def size(text: str) -> int:
    """Parse a positive number of bytes, such as ``64M``."""
    number = offset(text)
    if not number:
        raise ArgumentTypeError("must be more than 0 bytes")
    return number


def block_size(*, minimum: int = 1, maximum: int = MAX_BLOCK_SIZE) -> Callable[[str], int]:
    """Return a parser of block sizes, powers of two, in this range."""

    def parse(text: str) -> int:
        number = size(text)
        try:
            check_block_size(number, name="it", minimum=minimum, maximum=maximum)
        except ValueError:
            reason = f"must be a power of two from {minimum} to {maximum}, not {text!r}"
            raise ArgumentTypeError(reason) from None
        return number

    return parse


def text(value: str) -> str:
    """Return a name or path; refuse an empty one, such as the value of an unset variable."""
    if not value.strip():
        raise ArgumentTypeError("must not be empty")
    return value
