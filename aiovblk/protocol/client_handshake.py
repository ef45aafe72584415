"""The client's side of the handshake phase (fixed newstyle negotiation), without I/O.

:mod:`.handshake` says how it is driven.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..errors import OptionRefusedError, ProtocolError, TLSRequiredError, TLSUnavailableError
from ..text import quote
from .constants import MAX_PAYLOAD, ReplyMode, TransmissionFlag
from .handshake import Handshake, HandshakeSteps, Receive, StartTLS
from .handshake_constants import (
    BASE_ALLOCATION,
    MAX_STRING,
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
    OLDSTYLE_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    PADDING,
    U16,
    U32,
    ExportInfo,
    NegotiationResult,
    OptionReader,
    decode,
    serialize_context_request,
    serialize_info_request,
    serialize_option,
)

MAX_OPTION_REPLY = 64 * 1024
"""Maximum bytes of the data of one option reply."""

MAX_OPTION_REPLIES = 10_000
"""Maximum number of replies to one option: no server has reason to send as many."""

MAX_OPTION_REPLIES_SIZE = 16 * 1024 * 1024
"""Maximum bytes of all replies to one option: they are kept until the last one has arrived."""

_MAGIC = NBD_MAGIC.to_bytes(8, "big")

_USE_TLS = "it requires TLS: use nbds:// in place of nbd://, or nbds+unix: in place of nbd+unix:"
_NO_TLS = "it has no TLS: nbd:// in place of nbds:// connects without it, unencrypted"


def _refused(option: Option, reply: int, payload: bytes) -> OptionRefusedError:
    """Make the exception for an error reply to an option."""
    try:
        name = OptionReply(reply).name
    except ValueError:
        name = f"error {reply:#x}"
    reason = quote(payload[:MAX_STRING].decode(errors="replace")) or name
    refused = f"the server refused {option.name}: {reason}"
    if reply == OptionReply.ERR_TLS_REQD and option != Option.STARTTLS:
        return TLSRequiredError(f"{refused}; {_USE_TLS}", reply)
    if option == Option.STARTTLS:
        return TLSUnavailableError(f"{refused}; {_NO_TLS}", reply)
    return OptionRefusedError(refused, reply)


class ClientHandshake(Handshake[NegotiationResult]):
    """Negotiate with one server: TLS, reply mode, metadata contexts, and an export.

    Args:
        name: of the export; empty for the server's default export.
        tls: whether to start TLS before anything else.
        mode: the highest reply mode to ask for; the highest that the server accepts is used.
        allocation: whether to ask for ``base:allocation``.
        contexts: names of further metadata contexts; one that ends with a colon is a query, for all
            that the server lists for it.
        list_contexts: whether to ask which contexts there are.

    Attributes:
        expected_reply: what the server is to send next, for error messages: ``greeting``, or
            ``tls`` (its first bytes over TLS); empty for anything else.

    """

    def __init__(
        self,
        name: str = "",
        *,
        tls: bool = False,
        mode: ReplyMode = ReplyMode.EXTENDED,
        allocation: bool = True,
        contexts: Sequence[str] = (),
        list_contexts: bool = False,
    ) -> None:
        super().__init__()
        self._name = name
        self._tls = tls
        self._max_mode = mode
        self._allocation = allocation
        self._wanted_contexts = contexts
        self._list_contexts = list_contexts
        self._offered_contexts: tuple[str, ...] | None = None
        self._mode = ReplyMode.SIMPLE
        self.expected_reply = ""

    def run(self) -> HandshakeSteps[NegotiationResult]:
        """Run the handshake up to the transmission phase.

        Raises:
            ProtocolError: the server does not speak fixed newstyle NBD, or breaks the protocol.
            OptionRefusedError: it refuses the export, or the contexts.
            TLSRequiredError: it requires TLS, and ``tls`` is off.
            TLSUnavailableError: it refuses TLS, and ``tls`` is on.

        """
        no_zeroes = yield from self._exchange_greetings()
        if self._tls:
            yield from self._send_option(Option.STARTTLS)
            yield StartTLS()
            self.expected_reply = "tls"
        yield from self._negotiate_mode()
        contexts = yield from self._negotiate_contexts()
        try:
            info = yield from self._go()
        except OptionRefusedError as exc:
            # "Once extended headers are requested, a client MUST NOT use NBD_OPT_EXPORT_NAME."
            if exc.reply != OptionReply.ERR_UNSUP or self._mode is ReplyMode.EXTENDED:
                raise
            info = yield from self._export_name(no_zeroes)
        return NegotiationResult(self._name, info, self._mode, contexts, self._offered_contexts)

    def _exchange_greetings(self) -> HandshakeSteps[bool]:
        """Receive the greeting and send the client flags; returns whether padding is omitted."""
        # The magic first: servers of other protocols send less than a whole NBD greeting, and then
        # wait for an answer.
        self.expected_reply = "greeting"
        begin: bytes = yield Receive(len(_MAGIC))
        self.expected_reply = ""
        if begin != _MAGIC:
            shown = quote(begin.decode(errors="replace"))
            raise ProtocolError(f'this is no NBD server: it greets with "{shown}"')
        rest: bytes = yield Receive(GREETING.size - len(_MAGIC))
        _, style, offered = GREETING.unpack(begin + rest)
        if style == OLDSTYLE_MAGIC:
            raise ProtocolError("the server speaks only oldstyle NBD, which has no options")
        if style != IHAVEOPT or not offered & HandshakeFlag.FIXED_NEWSTYLE:
            raise ProtocolError("the server does not speak fixed newstyle NBD")
        flags = offered & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
        self._data_to_send += CLIENT_FLAGS.pack(flags)
        return bool(flags & HandshakeFlag.NO_ZEROES)

    def _negotiate_mode(self) -> HandshakeSteps[None]:
        for option, mode in (
            (Option.EXTENDED_HEADERS, ReplyMode.EXTENDED),
            (Option.STRUCTURED_REPLY, ReplyMode.STRUCTURED),
        ):
            if self._max_mode < mode:
                continue
            try:
                yield from self._send_option(option)
            except TLSRequiredError:
                raise
            except OptionRefusedError:
                continue  # try the next lower mode
            self._mode = mode
            return

    def _negotiate_contexts(self) -> HandshakeSteps[dict[str, int]]:
        """Select metadata contexts; returns the ids of those that the server has."""
        if self._mode is ReplyMode.SIMPLE:
            return {}
        names = [BASE_ALLOCATION] if self._allocation else []
        names += yield from self._find_contexts()
        if not names:
            return {}
        replies = yield from self._ask_contexts(Option.SET_META_CONTEXT, dict.fromkeys(names))
        contexts: dict[str, int] = {}
        for name, number in replies:
            if name in names:
                contexts.setdefault(name, number)
        if len(set(contexts.values())) < len(contexts):
            raise ProtocolError("the server gave the same id to several metadata contexts")
        return contexts

    def _find_contexts(self) -> HandshakeSteps[list[str]]:
        """Return the names that were asked for, with those that the server lists for queries."""
        queries = tuple(each for each in self._wanted_contexts if each.endswith(":"))
        listed: list[str] = []
        if queries or self._list_contexts:
            asked = () if self._list_contexts else queries
            replies = yield from self._ask_contexts(Option.LIST_META_CONTEXT, asked)
            listed = [name for name, _ in replies]
        if self._list_contexts:
            self._offered_contexts = tuple(listed)
        names = [each for each in self._wanted_contexts if each not in queries]
        return names + [name for name in listed if name.startswith(queries)]

    def _ask_contexts(
        self, option: Option, queries: Iterable[str]
    ) -> HandshakeSteps[list[tuple[str, int]]]:
        """Send LIST or SET_META_CONTEXT; returns name and id of each context in its replies.

        Refused: none, unless contexts were asked for, and the server has the option.
        """
        data = serialize_context_request(self._name, list(queries))
        try:
            replies = yield from self._send_option(option, data)
        except OptionRefusedError as exc:
            is_wanted = self._wanted_contexts and exc.reply != OptionReply.ERR_UNSUP
            if is_wanted or isinstance(exc, TLSRequiredError):
                raise
            return []
        found = []
        for reply, context in replies:
            if reply == OptionReply.META_CONTEXT:
                fields = OptionReader(context)
                (number,) = fields.unpack(U32)
                found.append((decode(fields.rest()), number))
        return found

    def _go(self) -> HandshakeSteps[ExportInfo]:
        data = serialize_info_request(self._name, [Info.BLOCK_SIZE, Info.DESCRIPTION])
        replies = yield from self._send_option(Option.GO, data)
        return _export_info(data for reply, data in replies if reply == OptionReply.INFO)

    def _export_name(self, no_zeroes: bool) -> HandshakeSteps[ExportInfo]:
        self._data_to_send += serialize_option(Option.EXPORT_NAME, self._name.encode())
        data: bytes = yield Receive(EXPORT_NAME_REPLY.size)
        if not no_zeroes:
            yield Receive(PADDING)
        size, flags = EXPORT_NAME_REPLY.unpack(data)
        return ExportInfo(_check_size(size), TransmissionFlag(flags))

    def _send_option(
        self, option: Option, data: bytes = b""
    ) -> HandshakeSteps[list[tuple[int, bytes]]]:
        """Send an option, and receive its replies up to the final ACK.

        Returns:
            Type and data of each reply, without the ACK.

        Raises:
            OptionRefusedError: the server refused it.

        """
        self._data_to_send += serialize_option(option, data)
        replies: list[tuple[int, bytes]] = []
        size = 0
        while len(replies) < MAX_OPTION_REPLIES and size <= MAX_OPTION_REPLIES_SIZE:
            magic, about, reply, length = OPTION_REPLY.unpack((yield Receive(OPTION_REPLY.size)))
            self.expected_reply = ""
            if magic != OPTION_REPLY_MAGIC or about != option:
                raise ProtocolError("the server sent something other than a reply to our option")
            if length > MAX_OPTION_REPLY:
                raise ProtocolError(f"the server sent an option reply of {length} bytes")
            payload: bytes = (yield Receive(length)) if length else b""
            if reply == OptionReply.ACK:
                return replies
            if reply & 1 << 31:
                raise _refused(option, reply, payload)
            replies.append((reply, payload))
            size += length
        raise ProtocolError(f"the server sent too many replies to {option.name}")


def _export_info(replies: Iterator[bytes]) -> ExportInfo:
    found: tuple[int, int] | None = None
    blocks = 1, 4096, MAX_PAYLOAD
    description = ""
    for data in replies:
        fields = OptionReader(data)
        (kind,) = OptionReader(data).unpack(U16)
        if kind == Info.EXPORT:
            _, size, flags = fields.unpack(INFO_EXPORT)
            found = size, flags
        elif kind == Info.BLOCK_SIZE:
            _, *sizes = fields.unpack(INFO_BLOCK_SIZE)
            blocks = _check_block_sizes(*sizes)
        elif kind == Info.DESCRIPTION:
            fields.unpack(U16)
            description = decode(fields.rest())
    if found is None:
        raise ProtocolError("the server accepted GO, but did not report the export's size")
    size, flags = found
    return ExportInfo(_check_size(size), TransmissionFlag(flags), *blocks, description)


def _check_size(size: int) -> int:
    if size >= 1 << 63:
        raise ProtocolError(f"the server reports an invalid size of {size} bytes")
    return size


def _check_block_sizes(minimum: int, preferred: int, maximum: int) -> tuple[int, int, int]:
    """Return the block sizes, if they are valid ("Block size constraints")."""
    valid = (
        0 < minimum <= 65536
        and not minimum & (minimum - 1)
        and preferred >= minimum
        and maximum >= minimum
    )
    if not valid:
        sizes = f"{minimum}, {preferred}, {maximum}"
        raise ProtocolError(f"the server reports invalid block sizes: {sizes}")
    return minimum, preferred, min(maximum, MAX_PAYLOAD)
