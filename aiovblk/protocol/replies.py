"""The content of replies, and simple replies; :mod:`.structured_replies` has the other forms.

Rules from the specification's "Simple replies": a header of 16 bytes, with the cookie of the
request. Exactly the requested bytes follow it if it answers a READ that succeeded; otherwise
nothing does.
"""

from __future__ import annotations

from .reply_content import BlockStatuses, Payload, SparseData
from .requests import SIMPLE_REPLY, SIMPLE_REPLY_MAGIC, Request

ReplyContent = Payload | SparseData | BlockStatuses
"""What a successful reply carries; ``b""`` for nothing."""


def simple_reply(request: Request, error: int, content: ReplyContent) -> list[Payload]:
    """Serialize a simple reply: the buffers to send, payload not copied."""
    assert not isinstance(content, tuple)  # sparse data and extents need structured replies
    head = SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, request.cookie)
    return [head, content] if content else [head]
