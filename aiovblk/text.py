"""Text that others have written, made fit for a terminal, a log line or an exception.

What a peer says (an error's message, a name, a description) may hold terminal escapes, line breaks
and characters that turn the direction of writing: shown as they are, they forge log lines and
rewrite what stands on a screen. So they are escaped wherever such text is taken in.
"""

from __future__ import annotations

MAX_QUOTED = 300
"""Characters of what a peer says that are shown."""


def quote(text: str, max_length: int = MAX_QUOTED) -> str:
    r"""Escape everything in a peer's text that is not printable, and cut it.

    Quotation marks are not added. Letters of every language stay as they are; control characters,
    line breaks, format characters (such as bidirectional overrides) and lone surrogates become
    ``\x1b``, ``\n``, ``\u202e`` and so on.

    Args:
        text: what the peer says.
        max_length: characters after which it is cut; the escapes are not counted.

    """
    cut = text[: max_length + 1]
    shown = escape(cut[:max_length])
    return f"{shown}..." if len(cut) > max_length else shown


def escape(text: str) -> str:
    """Escape everything that is not printable; the same as :func:`quote`, but whole."""
    return text if text.isprintable() else "".join(map(_escape_character, text))


def _escape_character(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
