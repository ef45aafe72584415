"""A SPEC that names an export: an NBD URI, and the metadata contexts to select.

``?contexts=NAME,NAME`` is the command line's own; a comma in a name is written as ``%2C``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from urllib.parse import unquote

from ..client import RemoteDevice, connect
from ..device import BlockDevice
from ..protocol import URI
from ..protocol.uri import without_password
from ..storage import Layer
from ..text import quote
from .errors import SpecError, UsageError

_CONTEXTS = "contexts="


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """What a SPEC says of an export, and of the metadata contexts that are wanted of it."""

    uri: str
    contexts: tuple[str, ...]

    @classmethod
    def parse(cls, spec: str) -> ExportSpec:
        """Parse a SPEC without its block size.

        Raises:
            UsageError: it is no URI of an export, or the contexts cannot be read.

        """
        where, _, query = spec.partition("?")
        fields = query.split("&") if query else []
        found = [field for field in fields if field.startswith(_CONTEXTS)]
        if len(found) > 1:
            raise UsageError(
                f"{without_password(spec)!r} has contexts= twice; write contexts=NAME,NAME"
            )
        rest = [field for field in fields if field not in found]
        uri = "?".join([where, "&".join(rest)] if rest else [where])
        try:
            URI.parse(uri)
        except ValueError as exc:
            raise UsageError(str(exc)) from None
        names = found[0].removeprefix(_CONTEXTS).split(",") if found else []
        return cls(uri, tuple(unquote(name) for name in names))

    def location(self) -> str:
        """Return where the export is, without what only says how to connect to it."""
        uri = URI.parse(self.uri)
        socket = uri.socket
        if socket is not None and not socket.startswith("\0"):
            socket = os.path.realpath(socket)
        return str(replace(uri, socket=socket, tls_certificates=None, tls_psk_file=None))

    @asynccontextmanager
    async def connected(self, *, list_contexts: bool = False) -> AsyncIterator[RemoteDevice]:
        """Connect to it while the block runs.

        Raises:
            SpecError: the server does not have one of the contexts.
            UsageError: one is no name of a context.
            OSError, Error: as :func:`aiovblk.connect` raises.

        """
        try:
            connecting = connect(self.uri, contexts=self.contexts, list_contexts=list_contexts)
        except ValueError as exc:
            raise UsageError(str(exc)) from None
        async with connecting as remote:
            for name in self.contexts:
                if not name.endswith(":") and name not in remote.contexts:
                    raise SpecError(
                        f"{self.uri} does not offer the metadata context {quote(name)}; it has"
                        f" {', '.join(map(quote, remote.contexts)) or 'none'}"
                    )
            yield remote


class ConnectedDevice(Layer):
    """A device whose ``unmount()`` also closes the connection that it needs."""

    passes_bitmaps = True

    def __init__(self, inner: BlockDevice, connection: AsyncExitStack) -> None:
        super().__init__(inner)
        self._connection = connection

    def __repr__(self) -> str:
        """Show the device itself."""
        return repr(self.inner)

    async def unmount(self) -> None:
        """Unmount the device, and close the connection, whatever fails."""
        async with self._connection:
            await super().unmount()
