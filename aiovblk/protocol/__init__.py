"""The NBD protocol on the wire: handshake, requests and replies to bytes and back; no I/O."""

from .client_handshake import ClientHandshake
from .constants import (
    MAX_PAYLOAD,
    Command,
    CommandFlag,
    ReplyMode,
    TransmissionFlag,
)
from .extended_requests import EXTENDED_REQUEST, parse_extended_request, serialize_request
from .handshake import Handshake, HandshakeSteps, OpenExport, Pause, Receive, StartTLS, Step
from .handshake_constants import (
    BASE_ALLOCATION,
    DEFAULT_PORT,
    MAX_STRING,
    Info,
    Option,
    OptionReply,
)
from .options import ExportInfo, NegotiationResult
from .replies import ReplyContent
from .reply_constants import ReplyType, StatusFlag
from .reply_content import BlockStatus, Payload, SparseData
from .reply_parsing import (
    ReplyHeader,
    parse_block_status,
    parse_error,
    parse_reply_header,
    reply_header_size,
)
from .requests import (
    DIRECT_REQUEST,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    Request,
    parse_request,
)
from .server_handshake import ServerHandshake, TLSMode
from .structured_replies import SERIALIZERS, structured_read_header, structured_success
from .uri import URI
from .wire_errors import WIRE_ERRORS, errno_to_wire

__all__ = [
    "BASE_ALLOCATION",
    "DEFAULT_PORT",
    "DIRECT_REQUEST",
    "EXTENDED_REQUEST",
    "MAX_PAYLOAD",
    "MAX_STRING",
    "REQUEST",
    "REQUEST_MAGIC",
    "SERIALIZERS",
    "SIMPLE_REPLY",
    "SIMPLE_REPLY_MAGIC",
    "URI",
    "WIRE_ERRORS",
    "BlockStatus",
    "ClientHandshake",
    "Command",
    "CommandFlag",
    "ExportInfo",
    "Handshake",
    "HandshakeSteps",
    "Info",
    "NegotiationResult",
    "OpenExport",
    "Option",
    "OptionReply",
    "Pause",
    "Payload",
    "Receive",
    "ReplyContent",
    "ReplyHeader",
    "ReplyMode",
    "ReplyType",
    "Request",
    "ServerHandshake",
    "SparseData",
    "StartTLS",
    "StatusFlag",
    "Step",
    "TLSMode",
    "TransmissionFlag",
    "errno_to_wire",
    "parse_block_status",
    "parse_error",
    "parse_extended_request",
    "parse_reply_header",
    "parse_request",
    "reply_header_size",
    "serialize_request",
    "structured_read_header",
    "structured_success",
]
