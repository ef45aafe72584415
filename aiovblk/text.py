"""Escape untrusted text for a terminal, a log line or an exception.

Text of a peer (an error message, a name, a description) may contain terminal escapes, line breaks
and characters that change the direction of writing. Unescaped, they could forge log lines and
rewrite what is on a screen. So they are escaped wherever such text is received.
"""

from __future__ import annotations

MAX_QUOTED = 300
"""Most characters of a peer's text that are shown."""


def quote(text: str, max_length: int = MAX_QUOTED) -> str:
    r"""Escape everything in a peer's text that is not printable, and truncate it.

    Quotation marks are not added. Letters of every language stay as they are; control characters,
    line breaks, format characters (such as bidirectional overrides) and lone surrogates become
    ``\x1b``, ``\n``, ``\u202e`` and so on.

    Args:
        text: the text of the peer.
        max_length: characters after which it is truncated; counted before escaping.

    """
    cut = text[: max_length + 1]
    shown = escape(cut[:max_length])
    return f"{shown}..." if len(cut) > max_length else shown


def escape(text: str) -> str:
    """Escape everything that is not printable, as :func:`quote`, without truncating it."""
    return text if text.isprintable() else "".join(map(_escape_character, text))


def _escape_character(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
