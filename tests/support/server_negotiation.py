"""Run the server's side of the handshake against a client that sends given options."""

from __future__ import annotations

from aiovblk.protocol import ExportInfo, ServerHandshake, TLSMode
from aiovblk.protocol import TransmissionFlag as Flag

from . import wire
from .handshake_transcript import Transcript, transcribe
from .wire import FLAGS, option

DISK = ExportInfo(0x1122334455667788, Flag(0x16D), 512, 4096, 0x2000000, "a disk")
EMPTY = ExportInfo(1024, Flag(0x01))
NAMES = {"disk": "a disk", "été": "", "gone": "it was here"}
EXPORTS = {"disk": DISK, "été": EMPTY, "gone": None}

FIRST_ONLY = {"disk": "a disk"}

STRUCTURED = option(wire.STRUCTURED_REPLY)
EXTENDED = option(wire.EXTENDED_HEADERS)
STARTTLS = option(wire.STARTTLS)

INFO_EXPORT = bytes.fromhex("0000 1122334455667788 016d")
INFO_EXPORT_WITH_DF = bytes.fromhex("0000 1122334455667788 01ed")
INFO_BLOCK_SIZE = bytes.fromhex("0003 00000200 00001000 02000000")


def negotiate(
    *sent: bytes,
    names: dict[str, str] = NAMES,
    tls: TLSMode = TLSMode.OFF,
    flags: bytes = FLAGS,
) -> Transcript:
    """Run a server against a client that sends these options."""
    return transcribe(ServerHandshake(names, tls=tls), flags + b"".join(sent), EXPORTS)


def kinds(transcript: Transcript) -> list[tuple[int, int]]:
    """Option and type of each reply."""
    return [(number, kind) for number, kind, _ in wire.replies(transcript.sent)]


def assert_refused(transcript: Transcript, number: int, kind: int) -> None:
    """Check that the last option got this error, with a text, and that the handshake goes on."""
    refused, error, text = wire.replies(transcript.sent)[-1]
    assert (refused, error) == (number, kind)
    assert text.decode()
    assert not transcript.ended
    assert transcript.left == b""
