"""Types of the command line's options, for argparse: what cannot be is an error of usage."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable

from ..arguments import MAX_BLOCK_SIZE, check_block_size, check_seconds
from .errors import SpecError
from .sizes import parse_size


def count(*, least: int = 1, most: int = 2**31 - 1, step: int = 1) -> Callable[[str], int]:
    """A whole number from ``least`` to ``most``, a multiple of ``step``."""

    def parse(text: str) -> int:
        # int() takes 1_000 and digits of other scripts, and refuses thousands of digits by a text
        # of its own.
        digits = re.fullmatch(r"[+-]?[0-9]{1,20}", text.strip(), re.ASCII)
        number = int(text) if digits else least - 1
        if not least <= number <= most or number % step:
            kind = "a whole number" if step == 1 else f"a multiple of {step}"
            raise ArgumentTypeError(f"must be {kind} from {least} to {most}, not {text!r}")
        return number

    return parse


def seconds(text: str) -> float:
    """A positive, finite number of seconds."""
    try:
        number = float(text)
        check_seconds("it", number)
    except ValueError:
        reason = f"must be a positive number of seconds, such as 30 or 0.5, not {text!r}"
        raise ArgumentTypeError(reason) from None
    return number


def size(text: str) -> int:
    """A positive number of bytes, as people write it."""
    try:
        number = parse_size(text)
    except SpecError as exc:
        raise ArgumentTypeError(str(exc)) from None
    if not number:
        raise ArgumentTypeError("must be more than 0 bytes")
    return number


def block_size(*, least: int = 1, most: int = MAX_BLOCK_SIZE) -> Callable[[str], int]:
    """A size of blocks: a power of two."""

    def parse(text: str) -> int:
        number = size(text)
        try:
            check_block_size(number, name="it", minimum=least, maximum=most)
        except ValueError:
            reason = f"must be a power of two from {least} to {most}, not {text!r}"
            raise ArgumentTypeError(reason) from None
        return number

    return parse


def text(value: str) -> str:
    """A name or path, which must not be empty (as the value of an unset variable is)."""
    if not value.strip():
        raise ArgumentTypeError("must not be empty")
    return value
