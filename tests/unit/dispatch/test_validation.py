"""RequestValidator: the requests that reach a handler, by what was negotiated."""

from __future__ import annotations

import errno

import pytest

from aiovblk.dispatch.validation import RequestValidator
from aiovblk.protocol import (
    Command,
    ExportInfo,
    NegotiationResult,
    ReplyMode,
    Request,
    TransmissionFlag,
)
from aiovblk.storage import MemoryDevice

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, RESIZE = Command
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << bit for bit in range(6))

SIZE = 1 << 20
BASIC = {READ: FUA, WRITE: FUA, FLUSH: FUA, TRIM: FUA, WRITE_ZEROES: FUA | NO_HOLE}


def rules(
    mode: ReplyMode = ReplyMode.SIMPLE,
    flags: TransmissionFlag = TransmissionFlag.HAS_FLAGS,
    allocation: int | None = None,
) -> RequestValidator:
    contexts = {} if allocation is None else {"base:allocation": allocation}
    agreement = NegotiationResult("", ExportInfo(SIZE, flags), mode, contexts)
    return RequestValidator(MemoryDevice(SIZE, block_size=512), agreement)


def a_request(command: int, flags: int = 0, offset: int = 0, length: int = 512) -> Request:
    return Request(flags, command, 1, offset, 0 if command == FLUSH else length)


@pytest.mark.parametrize("flag", [0, *(1 << bit for bit in range(16))])
@pytest.mark.parametrize(
    ("agreed", "allowed"),
    [
        (rules(), BASIC),
        (rules(ReplyMode.STRUCTURED), BASIC | {READ: FUA | DF}),
        (rules(ReplyMode.EXTENDED), BASIC | {READ: FUA | DF, WRITE: FUA | PAYLOAD_LEN}),
        (
            rules(ReplyMode.STRUCTURED, allocation=0),
            BASIC | {READ: FUA | DF, BLOCK_STATUS: FUA | REQ_ONE},
        ),
        (rules(flags=TransmissionFlag.SEND_CACHE), BASIC | {CACHE: FUA}),
        (
            rules(flags=TransmissionFlag.SEND_FAST_ZERO),
            BASIC | {WRITE_ZEROES: FUA | NO_HOLE | FAST_ZERO},
        ),
    ],
    ids=["simple", "structured", "extended", "allocation", "cache", "fast zero"],
)
def test_command_and_flag_that_were_not_agreed_upon_reply_einval(
    agreed: RequestValidator, allowed: dict[int, int], flag: int
) -> None:
    for command in (*Command, 9, 0xFFFF):
        expected = command in allowed and not flag & ~int(allowed[command])
        refusal = agreed.error_for(a_request(command, flag))
        assert refusal == (0 if expected else errno.EINVAL), command


@pytest.mark.parametrize("command", [WRITE, TRIM, WRITE_ZEROES])
def test_read_only_export_of_a_device_that_could_replies_eperm(command: Command) -> None:
    agreed = rules(flags=TransmissionFlag.READ_ONLY)
    assert agreed.error_for(a_request(command)) == errno.EPERM
    assert agreed.error_for(a_request(READ)) == agreed.error_for(a_request(FLUSH)) == 0


@pytest.mark.parametrize("command", [READ, WRITE, TRIM, WRITE_ZEROES, CACHE, BLOCK_STATUS])
@pytest.mark.parametrize(
    ("offset", "length", "is_inside"),
    [
        (0, SIZE, True),
        (SIZE - 512, 512, True),
        (0, 0, False),
        (1, 512, False),
        (0, 511, False),
        (SIZE, 512, False),
        (SIZE - 512, 1024, False),
        (0, 2**64 - 512, False),
        (2**64 - 512, 2**64 - 512, False),
    ],
)
def test_range_of_64_bits_is_inside_of_the_device_or_refused(
    command: Command, offset: int, length: int, is_inside: bool
) -> None:
    agreed = rules(ReplyMode.EXTENDED, TransmissionFlag.SEND_CACHE, 1)
    refusal = agreed.error_for(a_request(command, 0, offset, length))
    if is_inside:
        assert refusal == 0
    elif (offset | length) % 512 == 0 and length and command in (WRITE, WRITE_ZEROES):
        assert refusal == errno.ENOSPC
    else:
        assert refusal == errno.EINVAL
