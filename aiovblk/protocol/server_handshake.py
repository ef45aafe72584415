"""The server's side of the handshake phase (fixed newstyle negotiation), without I/O.

:mod:`.handshake` says how it is driven. Invariants:

* An option that is unknown, malformed or too long gets an error reply, and the handshake goes on:
  the option's length says where the next one begins. Only wrong magic numbers and flags end it, and
  an EXPORT_NAME that cannot be served, to which no error reply exists.
* Everything negotiated before TLS is dropped when TLS starts.
* While TLS is required and has not begun, each option but STARTTLS (and ABORT) is answered by
  ERR_TLS_REQD: a client learns nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from ..errors import ProtocolError
from .constants import ReplyMode, TransmissionFlag
from .contexts import concern_bitmaps, match_any, offered_contexts
from .handshake import Handshake, HandshakeSteps, ListBitmaps, OpenExport, Pause, Receive, StartTLS
from .handshake_constants import (
    BASE_ALLOCATION,
    MAX_CONTEXTS,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
)
from .options import (
    CLIENT_FLAGS,
    EXPORT_NAME_REPLY,
    GREETING,
    IHAVEOPT,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    NBD_MAGIC,
    OPTION,
    PADDING,
    U16,
    U32,
    ExportInfo,
    NegotiationResult,
    decode,
    parse_context_request,
    parse_info_request,
    serialize_option_reply,
    serialize_string,
)

MAX_OPTION = 64 * 1024
"""Maximum bytes of an option's data; a longer option is skipped and answered by ERR_TOO_BIG."""

MAX_UNSENT_REPLIES = 64 * 1024
"""Bytes of unsent replies to LIST (or LIST_META_CONTEXT) after which they are sent before more are
made."""

ALLOCATION_ID = 1
"""The context id of ``base:allocation`` in block status replies; those of others follow it."""

_NegotiationSteps = HandshakeSteps[NegotiationResult | None]


class TLSMode(Enum):
    """Whether a server offers or requires TLS."""

    OFF = "off"
    OFFERED = "offered"
    REQUIRED = "required"


class ServerHandshake(Handshake[NegotiationResult | None]):
    """Negotiate with one client: options, TLS, and the export that it chooses.

    Args:
        exports: name to description of each, as LIST reports them.
        tls: whether STARTTLS is accepted or required.

    Attributes:
        refusal: why the client's last request was refused, in words; None if it was not.

    """

    def __init__(self, exports: Mapping[str, str], *, tls: TLSMode = TLSMode.OFF) -> None:
        super().__init__()
        self._exports = exports
        self._tls = tls
        self.refusal: str | None = None
        self._secure = False
        self._no_zeroes = False
        self._mode = ReplyMode.SIMPLE
        self._contexts: dict[str, int] = {}
        self._contexts_of: str | None = None
        self._stepwise_options: dict[int, Callable[[bytes], _NegotiationSteps]] = {
            Option.LIST: self._list,
            Option.STARTTLS: self._start_tls,
            Option.INFO: self._info,
            Option.GO: self._go,
            Option.LIST_META_CONTEXT: self._list_meta_context,
            Option.SET_META_CONTEXT: self._set_meta_context,
        }
        self._immediate_options: dict[int, Callable[[bytes], None]] = {
            Option.STRUCTURED_REPLY: self._structured_reply,
            Option.EXTENDED_HEADERS: self._extended_headers,
        }

    def run(self) -> _NegotiationSteps:
        """Run the handshake until the client chooses an export, or aborts.

        Returns:
            The result of the negotiation; None if the client ended it by ABORT.

        Raises:
            ProtocolError: the client does not speak fixed newstyle NBD, or asked by EXPORT_NAME
                for an export that it cannot have, to which no error reply exists.

        """
        offered = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
        self._data_to_send += GREETING.pack(NBD_MAGIC, IHAVEOPT, offered)
        (flags,) = CLIENT_FLAGS.unpack((yield Receive(CLIENT_FLAGS.size)))
        if flags & ~int(offered):  # an IntFlag's complement lacks the bits that have no name
            raise ProtocolError(f"the client sent unknown flags {flags:#x}")
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        while True:
            magic, option, length = OPTION.unpack((yield Receive(OPTION.size)))
            if magic != IHAVEOPT:
                raise ProtocolError(f"expected an option, found the magic number {magic:#018x}")
            data = yield from self._receive(length)
            if option == Option.ABORT:
                self._reply(option, OptionReply.ACK)
                return None
            if option == Option.EXPORT_NAME:
                return (yield from self._export_name(data))
            result = yield from self._handle_option(option, data)
            if result is not None:
                return result

    def _receive(self, length: int) -> HandshakeSteps[bytes | None]:
        """Receive the data of an option; None if it was too long, and is skipped."""
        if length <= MAX_OPTION:
            return (yield Receive(length)) if length else b""
        while length:
            piece = min(length, MAX_OPTION)
            yield Receive(piece)
            length -= piece
        return None

    def _handle_option(self, option: int, data: bytes | None) -> _NegotiationSteps:
        if self._tls is TLSMode.REQUIRED and not self._secure and option != Option.STARTTLS:
            self.refusal = "the client did not ask for TLS, which is required"
            self._reply(option, OptionReply.ERR_TLS_REQD, b"TLS is required: send STARTTLS first")
            return None
        if option == Option.SET_META_CONTEXT:
            # It "replaces all previously-set metadata contexts (including when this command fails)"
            self._contexts_of = None
        if data is None:
            self._reply(option, OptionReply.ERR_TOO_BIG, b"the option is too long")
            return None
        try:
            if option in self._stepwise_options:
                return (yield from self._stepwise_options[option](data))
            if option in self._immediate_options:
                self._immediate_options[option](data)
            else:
                self._reply(option, OptionReply.ERR_UNSUP, b"this server has no such option")
        except ProtocolError as exc:
            self._reply(option, OptionReply.ERR_INVALID, str(exc).encode())
        return None

    # Options

    def _export_name(self, data: bytes | None) -> _NegotiationSteps:
        if self._tls is TLSMode.REQUIRED and not self._secure:
            raise ProtocolError("the client asked for an export without TLS, which is required")
        if self._mode is ReplyMode.EXTENDED:
            # "Once extended headers are requested, a client MUST NOT use NBD_OPT_EXPORT_NAME."
            raise ProtocolError("the client sent EXPORT_NAME, which extended headers forbid")
        name = None if data is None else self._resolve(decode(data))
        info = None if name is None else (yield OpenExport(name))
        if name is None or info is None:
            raise ProtocolError("the client asked for an export that is not there")
        self._data_to_send += EXPORT_NAME_REPLY.pack(info.size, self._flags(name, info))
        if not self._no_zeroes:
            self._data_to_send += bytes(PADDING)
        return self._result(name, info)

    def _list(self, data: bytes) -> _NegotiationSteps:
        _refuse_data(data)
        for name, description in self._exports.items():
            entry = serialize_string(name) + description.encode()
            self._reply(Option.LIST, OptionReply.SERVER, entry)
            if len(self._data_to_send) >= MAX_UNSENT_REPLIES:
                yield Pause()
        self._reply(Option.LIST, OptionReply.ACK)
        return None

    def _start_tls(self, data: bytes) -> _NegotiationSteps:
        _refuse_data(data)
        if self._tls is TLSMode.OFF:
            self._reply(Option.STARTTLS, OptionReply.ERR_UNSUP, b"this server has no TLS")
            return None
        if self._secure:
            raise ProtocolError("TLS has been started already")
        self._reply(Option.STARTTLS, OptionReply.ACK)
        yield StartTLS()
        self._secure, self.refusal = True, None
        self._mode, self._contexts_of = ReplyMode.SIMPLE, None
        return None

    def _info(self, data: bytes) -> _NegotiationSteps:
        yield from self._reply_info(Option.INFO, data)
        return None

    def _go(self, data: bytes) -> _NegotiationSteps:
        return (yield from self._reply_info(Option.GO, data))

    def _reply_info(self, option: Option, data: bytes) -> _NegotiationSteps:
        asked, wanted = parse_info_request(data)
        name = self._resolve(asked)
        info: ExportInfo | None = None if name is None else (yield OpenExport(name))
        if name is None or info is None:
            why = "is not there" if name is None else "cannot be opened"
            self.refusal = f"the client asked for an export that {why}"
            self._reply(option, OptionReply.ERR_UNKNOWN, b"there is no such export")
            return None
        infos = [INFO_EXPORT.pack(Info.EXPORT, info.size, self._flags(name, info))]
        if Info.BLOCK_SIZE in wanted:
            sizes = info.minimum_block, info.preferred_block, info.maximum_payload
            infos.append(INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, *sizes))
        if Info.NAME in wanted:
            infos.append(U16.pack(Info.NAME) + name.encode())
        if Info.DESCRIPTION in wanted and info.description:
            infos.append(U16.pack(Info.DESCRIPTION) + info.description.encode())
        for each in infos:
            self._reply(option, OptionReply.INFO, each)
        self._reply(option, OptionReply.ACK)
        return self._result(name, info)

    def _structured_reply(self, data: bytes) -> None:
        _refuse_data(data)
        if self._mode is ReplyMode.EXTENDED:
            text = b"extended headers have been negotiated already"
            self._reply(Option.STRUCTURED_REPLY, OptionReply.ERR_EXT_HEADER_REQD, text)
            return
        if self._mode is ReplyMode.STRUCTURED:
            raise ProtocolError("structured replies have been negotiated already")
        self._mode = ReplyMode.STRUCTURED
        self._reply(Option.STRUCTURED_REPLY, OptionReply.ACK)

    def _extended_headers(self, data: bytes) -> None:
        _refuse_data(data)
        if self._mode is ReplyMode.EXTENDED:
            raise ProtocolError("extended headers have been negotiated already")
        self._mode = ReplyMode.EXTENDED
        self._reply(Option.EXTENDED_HEADERS, OptionReply.ACK)

    def _list_meta_context(self, data: bytes) -> _NegotiationSteps:
        asked, queries = parse_context_request(data)
        needs_bitmaps = not queries or concern_bitmaps(queries)
        offered = yield from self._offered(Option.LIST_META_CONTEXT, asked, needs_bitmaps)
        if offered is None:
            return None
        for name in match_any(offered, queries):
            self._reply_context(Option.LIST_META_CONTEXT, 0, name)
            if len(self._data_to_send) >= MAX_UNSENT_REPLIES:
                yield Pause()
        self._reply(Option.LIST_META_CONTEXT, OptionReply.ACK)
        return None

    def _set_meta_context(self, data: bytes) -> _NegotiationSteps:
        asked, queries = parse_context_request(data)
        option = Option.SET_META_CONTEXT
        offered = yield from self._offered(option, asked, concern_bitmaps(queries))
        if offered is None:
            return None
        names = frozenset(queries)
        selected = [name for name in offered if name in names]
        if len(selected) > MAX_CONTEXTS:
            text = f"{len(selected)} metadata contexts; at most {MAX_CONTEXTS} are allowed"
            self._reply(option, OptionReply.ERR_TOO_BIG, text.encode())
            return None
        # `base:allocation` is the first on offer, and has its id whether it was selected or not.
        first = ALLOCATION_ID if BASE_ALLOCATION in names else ALLOCATION_ID + 1
        self._contexts = {name: number for number, name in enumerate(selected, first)}
        self._contexts_of = self._resolve(asked)
        for name, number in self._contexts.items():
            self._reply_context(option, number, name)
        self._reply(option, OptionReply.ACK)
        return None

    # Parts of replies

    def _offered(
        self, option: Option, asked: str, needs_bitmaps: bool
    ) -> HandshakeSteps[Sequence[str] | None]:
        """Return the contexts of an export; None if they are unknown, which is replied."""
        if self._mode is ReplyMode.SIMPLE:
            raise ProtocolError("metadata contexts need structured replies: negotiate them first")
        name = self._resolve(asked)
        if name is None:
            self._reply(option, OptionReply.ERR_UNKNOWN, b"there is no such export")
            return None
        # Only then: a device may have to be opened for it.
        bitmaps = (yield ListBitmaps(name)) if needs_bitmaps else ()
        if bitmaps is None:
            text = b"the dirty bitmaps of this export cannot be listed"
            self._reply(option, OptionReply.ERR_UNKNOWN, text)
            return None
        return offered_contexts(bitmaps)

    def _reply_context(self, option: Option, number: int, name: str) -> None:
        self._reply(option, OptionReply.META_CONTEXT, U32.pack(number) + name.encode())

    def _resolve(self, asked: str) -> str | None:
        """Return the export of this name; an empty name means the only export, if there is one."""
        if asked in self._exports:
            return asked
        return next(iter(self._exports)) if not asked and len(self._exports) == 1 else None

    def _flags(self, name: str, info: ExportInfo) -> TransmissionFlag:
        """Return the transmission flags of an export, as they are after what was negotiated."""
        if self._mode is ReplyMode.SIMPLE:
            return info.flags & ~TransmissionFlag.SEND_DF
        flags = info.flags | TransmissionFlag.SEND_DF
        if self._mode is ReplyMode.EXTENDED and self._selected(name):
            flags |= TransmissionFlag.BLOCK_STAT_PAYLOAD
        return flags

    def _selected(self, name: str) -> Mapping[str, int]:
        """Return the contexts that were selected for an export."""
        return self._contexts if self._contexts_of == name else {}

    def _result(self, name: str, info: ExportInfo) -> NegotiationResult:
        self.refusal = None
        return NegotiationResult(name, info, self._mode, self._selected(name))

    def _reply(self, option: int, reply: OptionReply, data: bytes = b"") -> None:
        self._data_to_send += serialize_option_reply(option, reply, data)


def _refuse_data(data: bytes) -> None:
    if data:
        raise ProtocolError("this option takes no data")
