"""Both sides of the handshake against each other, in every combination."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from aiovblk.errors import OptionRefusedError
from aiovblk.protocol import (
    ClientHandshake,
    ExportInfo,
    NegotiationResult,
    OptionReply,
    ReplyMode,
    ServerHandshake,
    TLSMode,
    TransmissionFlag,
)

from ...support.handshake_transcript import BothTranscripts, transcribe_both

DF = TransmissionFlag.SEND_DF
PAYLOAD = TransmissionFlag.BLOCK_STAT_PAYLOAD
DISK = ExportInfo(1 << 40, TransmissionFlag(0x16D), 512, 4096, 1 << 20, "a disk")
PLAIN = ExportInfo(4096, TransmissionFlag(0x01))
EXPORTS = {"": PLAIN, "disk": DISK, "d" * 4096: DISK, "gone": None}


def negotiate(
    name: str,
    *,
    client_tls: bool = False,
    server_tls: TLSMode = TLSMode.OFF,
    mode: ReplyMode = ReplyMode.EXTENDED,
    allocation: bool = True,
    exports: dict[str, ExportInfo | None] = EXPORTS,
) -> BothTranscripts:
    return transcribe_both(
        partial(ClientHandshake, name, tls=client_tls, mode=mode, allocation=allocation),
        partial(ServerHandshake, dict.fromkeys(exports, ""), tls=server_tls),
        exports,
    )


@pytest.mark.parametrize("name", ["disk", "", "d" * 4096])
@pytest.mark.parametrize("mode", ReplyMode)
@pytest.mark.parametrize("allocation", [False, True])
@pytest.mark.parametrize(
    "tls",
    [
        (False, TLSMode.OFF),
        (False, TLSMode.OFFERED),
        (True, TLSMode.OFFERED),
        (True, TLSMode.REQUIRED),
    ],
)
def test_both_sides_agree(
    name: str, mode: ReplyMode, allocation: bool, tls: tuple[bool, TLSMode]
) -> None:
    both = negotiate(name, mode=mode, allocation=allocation, client_tls=tls[0], server_tls=tls[1])
    contexts = {"base:allocation": 1} if allocation and mode else {}
    info = EXPORTS[name]
    assert info is not None
    assert both.server == NegotiationResult(name, info, mode, contexts)
    flags = info.flags | DF if mode else info.flags
    if contexts and mode is ReplyMode.EXTENDED:
        flags |= PAYLOAD
    told = replace(info, flags=flags)
    assert both.client == NegotiationResult(name, told, mode, contexts)
    assert both.secured is tls[0]


@pytest.mark.parametrize("mode", ReplyMode)
def test_default_export_has_the_contexts_that_were_asked_for(mode: ReplyMode) -> None:
    both = negotiate("", mode=mode, exports={"disk": DISK})
    assert both.client is not None
    assert both.server is not None
    assert both.server.name == "disk"
    assert (
        both.client.allocation_context_id
        == both.server.allocation_context_id
        == (1 if mode else None)
    )


@pytest.mark.parametrize("mode", ReplyMode)
@pytest.mark.parametrize(
    ("name", "client_tls", "server_tls", "reply"),
    [
        ("nowhere", False, TLSMode.OFF, OptionReply.ERR_UNKNOWN),
        ("gone", True, TLSMode.REQUIRED, OptionReply.ERR_UNKNOWN),
        ("d" * 4097, False, TLSMode.OFF, OptionReply.ERR_INVALID),
        ("d" * 65536, False, TLSMode.OFF, OptionReply.ERR_TOO_BIG),
        ("disk", True, TLSMode.OFF, OptionReply.ERR_UNSUP),
        ("disk", False, TLSMode.REQUIRED, OptionReply.ERR_TLS_REQD),
    ],
)
def test_client_is_told_what_it_cannot_have(
    name: str, client_tls: bool, server_tls: TLSMode, reply: OptionReply, mode: ReplyMode
) -> None:
    both = negotiate(name, mode=mode, client_tls=client_tls, server_tls=server_tls)
    assert isinstance(both.error, OptionRefusedError)
    assert both.error.reply == reply
    assert both.server is None
