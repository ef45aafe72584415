"""The metadata contexts that a client asks for: their names, and those of dirty bitmaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..protocol import DIRTY_BITMAP, MAX_CONTEXTS, MAX_STRING


def check_contexts(contexts: Sequence[str]) -> tuple[str, ...]:
    """Return names of metadata contexts without repetitions.

    Raises:
        TypeError: this is no sequence of str.
        ValueError: one is no ``NAMESPACE:NAME``, or there are too many.

    """
    if isinstance(contexts, str):
        raise TypeError(f"contexts must be a sequence of names, not {contexts!r}: [{contexts!r}]")
    names = tuple(dict.fromkeys(contexts))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"the name of a metadata context must be a str, not {name!r}")
        if not name.partition(":")[1] or len(name.encode()) > MAX_STRING:
            raise ValueError(
                f"a metadata context is NAMESPACE:NAME of at most {MAX_STRING} bytes, not {name!r}"
            )
    if len(names) > MAX_CONTEXTS:
        raise ValueError(f"{len(names)} metadata contexts; at most {MAX_CONTEXTS} can be selected")
    return names


def dirty_bitmaps_among(contexts: Iterable[str]) -> list[str]:
    """Return the names of the dirty bitmaps that these contexts are, sorted."""
    return sorted(
        name.removeprefix(DIRTY_BITMAP) for name in contexts if name.startswith(DIRTY_BITMAP)
    )
