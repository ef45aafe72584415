"""A store of the package ``obstore``, and another one in its place once its credentials expire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...aio.backoff import RetryLog
from ...text import quote

if TYPE_CHECKING:
    from obstore.store import ObjectStore as ObstoreStore

logger = logging.getLogger("aiovblk")

_RENEWALS = 5.0
"""Seconds between two at least: credentials that lack a right are not mended by asking again."""


class Access:
    """What all clients of one store have in common.

    Args:
        store: of obstore.
        name: that its objects are told by in messages: ``s3://BUCKET``; may be empty.
        make: makes the store anew, with credentials that are looked up again; None where there are
            no others. It may block.

    Attributes:
        store: the present one.
        known: whether it has answered a request, so that credentials and address are right.
        notices: what the log is told of requests that are repeated.

    """

    def __init__(
        self, store: ObstoreStore, name: str = "", make: Callable[[], ObstoreStore] | None = None
    ) -> None:
        self.store = store
        self.known = False
        self.notices = RetryLog()
        self._name = name
        self._make = make
        self._renewing = asyncio.Lock()
        self._renewed: float | None = None

    @property
    def renewable(self) -> bool:
        """Whether there may be other credentials."""
        return self._make is not None

    def where(self, path: str) -> str:
        """What an object is called in messages."""
        return f"{self._name}/{path}" if self._name else path

    async def renew(self, refused: ObstoreStore) -> bool:
        """Look up the credentials again, once for all requests that were refused together.

        Args:
            refused: the store whose credentials were.

        Returns:
            Whether there is another store now, with which the request is to be made again.

        """
        async with self._renewing:
            if self.store is not refused:
                return True
            now = asyncio.get_running_loop().time()
            recently = self._renewed is not None and now - self._renewed < _RENEWALS
            if self._make is None or recently:
                return False
            self._renewed = now
            try:
                self.store = await asyncio.to_thread(self._make)
            except Exception as exc:  # obstore and botocore have one for each mistake
                logger.warning("%s: no other credentials: %s", self._name, quote(str(exc)))
                return False
            return True
