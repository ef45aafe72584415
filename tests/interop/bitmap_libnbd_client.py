"""What libnbd's Python module says of dirty bitmaps: ``bitmap_libnbd_client.py URI FORM``.

FORM is ``structured``, or ``extended`` for extended headers. The server has the bitmaps ``a`` and
``b`` that :mod:`.test_dirty_bitmaps` makes. Every check raises AssertionError.
"""

import sys
from collections.abc import Callable
from typing import Any

import nbd  # type: ignore[import-not-found]  # it is Debian's python3-libnbd

MIB = 1 << 20
SIZE = 8 * MIB
ALLOCATION, A, B = "base:allocation", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"
MAPS = {
    ALLOCATION: [SIZE, 3],
    A: [MIB, 0, 65536, 1, SIZE - MIB - 65536, 0],
    B: [512, 1, SIZE - 512, 0],
}


def connected(uri: str, form: str) -> Any:
    """Connect as far as the options, and look at what the server lists."""
    h = nbd.NBD()
    if form == "structured" and hasattr(h, "set_request_extended_headers"):
        h.set_request_extended_headers(False)
    h.set_opt_mode(True)
    h.connect_uri(uri)
    assert listed(h, []) == [ALLOCATION, A, B]
    assert listed(h, ["qemu:"]) == listed(h, ["qemu:dirty-bitmap:"]) == [A, B]
    assert listed(h, [B, "base:"]) == [ALLOCATION, B]
    assert listed(h, ["qemu:dirty-bitmap:c"]) == []
    for name in (A, ALLOCATION, B, "qemu:dirty-bitmap:c"):
        h.add_meta_context(name)
    h.opt_go()
    assert [h.can_meta_context(name) for name in MAPS] == [True] * 3
    assert not h.can_meta_context("qemu:dirty-bitmap:c")
    return h


def listed(h: Any, queries: list[str]) -> list[str]:
    """Ask which contexts match some queries."""
    names: list[str] = []
    h.clear_meta_contexts()
    for query in queries:
        h.add_meta_context(query)

    def context(name: str) -> int:
        names.append(name)
        return 0

    h.opt_list_meta_context(context)
    h.clear_meta_contexts()
    return names


def collector(found: dict[str, list[int]]) -> Callable[..., int]:
    """Make a callback that keeps the extents of each context."""

    def extents(context: str, offset: int, entries: list[int], error: Any) -> int:
        assert context not in found, "each context once"
        found[context] = list(entries)
        return 0

    return extents


def flat(pairs: list[Any]) -> list[int]:
    """Extents of 64 bits come as pairs of length and flags."""
    return [number for pair in pairs for number in pair]


def main() -> None:
    """Connect, ask, and take leave."""
    uri, form = sys.argv[1:]
    h = connected(uri, form)
    found: dict[str, list[int]] = {}
    h.block_status(SIZE, 0, collector(found))
    assert found == MAPS, found
    found.clear()
    h.block_status(SIZE, 0, collector(found), nbd.CMD_FLAG_REQ_ONE)
    assert found == {name: entries[:2] for name, entries in MAPS.items()}, found
    found.clear()
    h.block_status(MIB, MIB, collector(found))
    assert found[A] == [65536, 1, MIB - 65536, 0]
    if form == "extended":
        assert h.get_extended_headers_negotiated()
        assert h.can_block_status_payload()
        found.clear()
        h.block_status_filter(SIZE, 0, [B], collector(found))
        assert {name: flat(entries) for name, entries in found.items()} == {B: MAPS[B]}, found
        found.clear()
        h.block_status_64(SIZE, 0, collector(found))
        assert flat(found[A]) == MAPS[A]
    h.shutdown()


if __name__ == "__main__":
    main()
