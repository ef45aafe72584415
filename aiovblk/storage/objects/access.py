"""Share one store of the package ``obstore``, and renew its credentials when they are refused."""

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

_RENEWAL_INTERVAL = 5.0
"""Seconds between two renewals at least: new credentials do not help where a permission lacks."""


class Access:
    """The state that all clients of one store share.

    Args:
        store: of obstore.
        name: the store in messages, ``s3://BUCKET`` say; may be empty.
        make: makes the store anew, with credentials that are looked up again; None where there are
            no others. It may block.

    Attributes:
        store: the present one.
        known: whether it has answered a request, so that credentials and address are right.
        notices: logs requests that are retried, once for all clients.

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
        """Whether credentials can be looked up again."""
        return self._make is not None

    def where(self, path: str) -> str:
        """Return an object's path with the store's name before it, for messages."""
        return f"{self._name}/{path}" if self._name else path

    async def renew(self, refused: ObstoreStore) -> bool:
        """Look up the credentials again, once for all requests that were refused together.

        Args:
            refused: the store whose credentials were refused.

        Returns:
            Whether there is a new store, with which the request is to be retried.

        """
        async with self._renewing:
            if self.store is not refused:
                return True
            now = asyncio.get_running_loop().time()
            recently = self._renewed is not None and now - self._renewed < _RENEWAL_INTERVAL
            if self._make is None or recently:
                return False
            self._renewed = now
            try:
                self.store = await asyncio.to_thread(self._make)
            except Exception as exc:  # obstore and botocore have a class for each mistake
                logger.warning(
                    "%s: could not renew the credentials: %s", self._name, quote(str(exc))
                )
                return False
            return True
