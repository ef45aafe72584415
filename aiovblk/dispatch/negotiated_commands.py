"""Commands and command flags that a network client may use, since they were negotiated."""

from __future__ import annotations

from ..protocol import Command, CommandFlag, NegotiationResult, ReplyMode, TransmissionFlag


def allow_negotiated(allowed: dict[int, int], negotiated: NegotiationResult) -> None:
    """Add to the allowed command flags of each command what a handshake has agreed on.

    Args:
        allowed: by command; the values are plain ints, since the complement of an IntFlag lacks the
            bits that have no name.
        negotiated: the result of the handshake.

    """
    flags = negotiated.info.flags
    if negotiated.mode >= ReplyMode.STRUCTURED:
        allowed[int(Command.READ)] |= int(CommandFlag.DF)
    if negotiated.mode >= ReplyMode.EXTENDED:
        allowed[int(Command.WRITE)] |= int(CommandFlag.PAYLOAD_LEN)
    if TransmissionFlag.SEND_FAST_ZERO in flags:
        allowed[int(Command.WRITE_ZEROES)] |= int(CommandFlag.FAST_ZERO)
    if TransmissionFlag.SEND_CACHE in flags:
        allowed[int(Command.CACHE)] = int(CommandFlag.FUA)
    if negotiated.contexts:
        allowed[int(Command.BLOCK_STATUS)] = int(CommandFlag.FUA) | int(CommandFlag.REQ_ONE)
        if negotiated.mode >= ReplyMode.EXTENDED:
            allowed[int(Command.BLOCK_STATUS)] |= int(CommandFlag.PAYLOAD_LEN)
