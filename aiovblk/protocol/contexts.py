"""Metadata contexts: which of those that an export has a client's queries match.

Rules from the specification's "Metadata querying":

* LIST: no query matches all; a namespace, or another part that ends with a colon, matches what
  begins with it; anything else matches the context of that name.
* SET: only names match. Queries that match nothing are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .handshake_constants import BASE_ALLOCATION, DIRTY_BITMAP, MAX_STRING, QEMU

_PREFIXES = frozenset({"base:", QEMU, DIRTY_BITMAP})


def offered_contexts(bitmaps: Iterable[str]) -> list[str]:
    """Return the contexts of an export with these dirty bitmaps, each once.

    A bitmap whose name the protocol has no room for is left out.
    """
    names = dict.fromkeys(DIRTY_BITMAP + name for name in bitmaps)
    return [BASE_ALLOCATION, *filter(_fits, names)]


def concern_bitmaps(queries: Sequence[str]) -> bool:
    """Return whether any of these queries may match a dirty bitmap."""
    return any(query.startswith(QEMU) for query in queries)


def match_any(offered: Sequence[str], queries: Sequence[str]) -> list[str]:
    """Return the offered contexts that match the queries of LIST, in the order of the offer."""
    if not queries:
        return list(offered)
    names = frozenset(queries)
    prefixes = tuple(names & _PREFIXES)
    return [name for name in offered if name in names or name.startswith(prefixes)]


def _fits(name: str) -> bool:
    try:
        return len(name.encode()) <= MAX_STRING
    except UnicodeEncodeError:  # a lone surrogate: from a file's name, say
        return False
