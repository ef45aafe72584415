"""The generator protocol that the client's and the server's handshake share; it does no I/O.

A handshake is a generator, :meth:`Handshake.run`. It yields a :data:`Step`, which says what it
needs next, and receives the answer by ``send``:

========================= ==========================================================================
:class:`Receive`          the bytes: exactly as many as it asks for
:class:`OpenExport`       the :class:`.ExportInfo`, or None if the export cannot be opened (servers)
:class:`ListBitmaps`      the names of its dirty bitmaps, or None if they cannot be listed (servers)
:class:`Pause`            None, once what :meth:`Handshake.data_to_send` returns has been sent
:class:`StartTLS`         None, once TLS has begun
========================= ==========================================================================

The driver (:func:`aiovblk.stream.run_handshake`) keeps these rules:

* Before it answers each step, and at the end, it sends what :meth:`Handshake.data_to_send` returns.
* Bytes that were received before TLS began are never read after it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Receive(NamedTuple):
    """Ask for this many bytes of the peer."""

    length: int


class OpenExport(NamedTuple):
    """Ask for the :class:`ExportInfo` of an export; the answer is None if it cannot be opened."""

    name: str


class ListBitmaps(NamedTuple):
    """Ask for the names of the dirty bitmaps of an export; None if they cannot be listed."""

    name: str


class StartTLS(NamedTuple):
    """Ask to start TLS, once the data to send has been sent."""


class Pause(NamedTuple):
    """Ask only that the data to send be sent, before more of it is made (backpressure)."""


Step = Receive | OpenExport | ListBitmaps | Pause | StartTLS
"""What a handshake needs next."""

HandshakeSteps = Generator[Step, Any, T]
"""A handshake, or a part of one, with a result of type ``T``."""


class Handshake(ABC, Generic[T_co]):
    """One side of one handshake, without I/O."""

    def __init__(self) -> None:
        self._data_to_send = bytearray()

    def data_to_send(self) -> bytes:
        """Return what is to be sent now, once: the next call returns only what came after."""
        taken = bytes(self._data_to_send)
        self._data_to_send.clear()
        return taken

    @abstractmethod
    def run(self) -> HandshakeSteps[T_co]:
        """Run the handshake, step by step; see the module's text.

        Raises:
            ProtocolError: the peer broke the protocol.

        """
