"""BLOCK_STATUS: what a device says of a range, for each metadata context that is asked about.

Only clients that have selected metadata contexts get here; the kernel has not. What holds here:

* A reply has one chunk for each context, and no more than :data:`.MAX_SENT_EXTENTS` extents in all.
* A bitmap that has disappeared since it was selected fails the request with ENOTSUP.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ..bitmaps import find_dirty
from ..device import BlockDevice, Extent
from ..errors import ProtocolError
from ..protocol import (
    BASE_ALLOCATION,
    DIRTY_BITMAP,
    BlockStatus,
    BlockStatuses,
    CommandFlag,
    NegotiationResult,
    Request,
    parse_context_selection,
)
from .holes import MAX_SENT_EXTENTS, merge_extents

_REQ_ONE = int(CommandFlag.REQ_ONE)


@dataclass(slots=True)
class ContextRequest(Request):
    """A BLOCK_STATUS with a payload, which selects some of the negotiated contexts."""

    contexts: tuple[int, ...] = ()
    """Their ids."""


def select_contexts(
    request: Request, payload: memoryview, negotiated: NegotiationResult
) -> Request:
    """Return what a BLOCK_STATUS with this payload asks for: its real range, and its contexts.

    One that is malformed, or names a context that was not selected, gets a length of 0, for which
    it is refused with EINVAL. The payload is released.
    """
    length: int
    contexts: tuple[int, ...]
    known = negotiated.contexts.values()
    with payload:
        try:
            length, contexts = parse_context_selection(payload, len(known))
        except ProtocolError:
            length, contexts = 0, ()
    if not set(contexts) <= set(known):
        length = 0
    fields = request.flags, request.type, request.cookie, request.offset, length, request.arrival
    return ContextRequest(*fields, contexts)


class BlockStatusAdapter:
    """Answer the BLOCK_STATUS requests of one connection.

    Args:
        device: the device that is asked for dirty extents.
        negotiated: the result of the handshake: the contexts, and their ids.
        extents: the device's handler for ``base:allocation``.

    """

    def __init__(
        self,
        device: BlockDevice,
        negotiated: NegotiationResult,
        extents: Callable[[int, int], Awaitable[Sequence[Extent]]],
    ) -> None:
        self._device = device
        self._extents = extents
        self._names = {number: name for name, number in negotiated.contexts.items()}

    async def handle(self, request: Request) -> BlockStatuses:
        """Return the extents of each context that a request asks for.

        Raises:
            OSError: a bitmap is no longer there (ENOTSUP), or what the device raised.

        """
        chosen = request.contexts if isinstance(request, ContextRequest) else tuple(self._names)
        # "REQ_ONE: the server MUST return exactly one extent per metadata context."
        limit = 1 if request.flags & _REQ_ONE else MAX_SENT_EXTENTS // len(chosen)
        return BlockStatuses(
            [BlockStatus(number, await self._status(number, request, limit)) for number in chosen]
        )

    async def _status(self, number: int, request: Request, limit: int) -> list[tuple[int, int]]:
        name, offset, length = self._names[number], request.offset, request.length
        if name == BASE_ALLOCATION:
            return merge_extents(await self._extents(offset, length), length, limit)
        bitmap = name.removeprefix(DIRTY_BITMAP)
        try:
            found = await find_dirty(self._device, bitmap, offset, length)
        except KeyError as exc:
            raise OSError(errno.ENOTSUP, f"there is no dirty bitmap {bitmap!r} any more") from exc
        # STATUS_DIRTY is the bit that HOLE is in the other context.
        states = ((size, dirty, False) for size, dirty in found)
        return merge_extents(states, length, limit, handler="dirty_extents")
