"""Parse and format NBD URIs (the specification's doc/uri.md).

Rules beyond that text:

* Whatever this library cannot do for a URI is an error, never ignored: an unknown parameter, TLS
  parameters without TLS, a host with a Unix socket.
* ``tls-certificates`` and ``tls-psk-file`` are libnbd's parameters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit

from .handshake_constants import DEFAULT_PORT, MAX_STRING

SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix")

_SOCKET = "socket"
_CERTIFICATES = "tls-certificates"
_PSK_FILE = "tls-psk-file"
_HOSTNAME = "tls-hostname"
_VERIFY_PEER = "tls-verify-peer"
_PARAMETERS = {_SOCKET, _CERTIFICATES, _PSK_FILE, _HOSTNAME, _VERIFY_PEER}


@dataclass(frozen=True, slots=True)
class URI:
    """The address of an export: its name, its server, and how to connect."""

    export: str = ""
    """Name of the export; empty for the server's default export."""
    host: str = "localhost"
    """Host name or address; not used if :attr:`socket` is set."""
    port: int = DEFAULT_PORT
    """TCP port; not used if :attr:`socket` is set."""
    socket: str | None = None
    """Path of a Unix socket; one that begins with a NUL is in Linux's abstract namespace."""
    tls: bool = False
    """Whether TLS is required."""
    user: str | None = None
    """The client's identity, for TLS with pre-shared keys."""
    tls_certificates: str | None = None
    """Directory of ``ca-cert.pem``, ``client-cert.pem`` and ``client-key.pem``."""
    tls_psk_file: str | None = None
    """File of pre-shared keys, lines of ``user:hexadecimal key``."""
    tls_hostname: str | None = None
    """The name that the server's certificate must have, if it is not :attr:`host`."""
    tls_verify_peer: bool = True
    """Whether the server's certificate is verified."""

    @classmethod
    def parse(cls, text: str) -> URI:
        """Parse a URI of one of the schemes nbd, nbds, nbd+unix and nbds+unix.

        Raises:
            ValueError: it is not such a URI, or asks for what is not supported; the message says
                what.

        """
        try:
            return _parse(text)
        except ValueError as exc:
            shown = without_password(text)
            raise ValueError(f"{shown!r} cannot be used as an NBD URI: {exc}") from None

    def __str__(self) -> str:
        """Format the URI without defaults; :meth:`parse` of the result returns an equal one."""
        scheme = f"nbd{'s' if self.tls else ''}{'' if self.socket is None else '+unix'}"
        user = "" if self.user is None else f"{_quote(self.user)}@"
        query = "&".join(f"{name}={_quote(value, '/')}" for name, value in self._query())
        path = _quote(self.export, "/")
        return f"{scheme}://{user}{self._address()}/{path}{'?' if query else ''}{query}"

    def _address(self) -> str:
        if self.socket is not None:
            return ""
        host = f"[{_quote(self.host, ':')}]" if ":" in self.host else _quote(self.host)
        return host if self.port == DEFAULT_PORT else f"{host}:{self.port}"

    def _query(self) -> list[tuple[str, str]]:
        query = {
            _SOCKET: self.socket,
            _CERTIFICATES: self.tls_certificates,
            _PSK_FILE: self.tls_psk_file,
            _HOSTNAME: self.tls_hostname,
            _VERIFY_PEER: None if self.tls_verify_peer else "0",
        }
        return [(name, value) for name, value in query.items() if value is not None]


def without_password(text: str) -> str:
    """Redact the password in a URI, for messages and logs (NBD URIs have none; others do)."""
    return _PASSWORD.sub(r"\1:...@", text, count=1)


_PASSWORD = re.compile(r"(?<=//)([^/?#:]*):[^/?#]*@")


def _parse(text: str) -> URI:
    scheme, _, rest = text.partition(":")
    if scheme.lower() not in SCHEMES:
        raise ValueError(f"its scheme must be one of {', '.join(SCHEMES)}")
    if not rest.startswith("//"):
        raise ValueError(f"// must follow {scheme}:")
    parts = urlsplit(text)
    parameters = _parameters(parts)
    host, port = _address(parts)
    return URI(
        export=_export(parts),
        host=host,
        port=port,
        socket=parameters.get(_SOCKET),
        tls=_is_tls(parts),
        user=_user(parts),
        tls_certificates=parameters.get(_CERTIFICATES),
        tls_psk_file=parameters.get(_PSK_FILE),
        tls_hostname=parameters.get(_HOSTNAME),
        tls_verify_peer=_boolean(_VERIFY_PEER, parameters.get(_VERIFY_PEER, "1")),
    )


def _is_tls(parts: SplitResult) -> bool:
    return parts.scheme.startswith("nbds")


def _export(parts: SplitResult) -> str:
    if parts.fragment:
        raise ValueError("a # in it must be written as %23")
    # "The path part of the URI except for the leading / character": one of them.
    name = unquote(parts.path.removeprefix("/"), errors="strict")
    if "\0" in name or len(name.encode()) > MAX_STRING:
        raise ValueError(f"an export's name has at most {MAX_STRING} bytes, none of them NUL")
    return name


def _address(parts: SplitResult) -> tuple[str, int]:
    host = unquote(parts.hostname or "")
    try:
        port = parts.port
    except ValueError:  # whose message has what stands there: a part of a password, perhaps
        raise ValueError("its port must be a number from 0 to 65535") from None
    if parts.scheme.endswith("+unix") and (host or port is not None):
        raise ValueError(f"a Unix socket has no host; write {parts.scheme}:///{host}?socket=PATH")
    return host or URI().host, DEFAULT_PORT if port is None else port


def _user(parts: SplitResult) -> str | None:
    if parts.password is not None:
        raise ValueError("NBD has no passwords; use tls-psk-file for keys")
    return None if parts.username is None else unquote(parts.username)


def _parameters(parts: SplitResult) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in filter(None, parts.query.split("&")):
        name, _, value = each.partition("=")
        if name not in _PARAMETERS:
            raise ValueError(f"its parameter {name!r} is unknown")
        if name in found:
            raise ValueError(f"its parameter {name!r} is given twice")
        # Unlike in a form of a web page, a plus sign means itself. Paths need not be UTF-8.
        found[name] = unquote(value, errors="surrogateescape")
    _check_parameters(parts, found)
    return found


def _check_parameters(parts: SplitResult, found: dict[str, str]) -> None:
    if parts.scheme.endswith("+unix") and not found.get(_SOCKET):
        raise ValueError(f"its socket is missing; write {parts.scheme}:///EXPORT?socket=PATH")
    if not parts.scheme.endswith("+unix") and _SOCKET in found:
        raise ValueError(f"a socket needs the scheme {parts.scheme}+unix")
    for name in found:
        if name != _SOCKET and not _is_tls(parts):
            raise ValueError(f"{name} needs the scheme {parts.scheme.replace('nbd', 'nbds')}")
    if _CERTIFICATES in found and _PSK_FILE in found:
        raise ValueError(f"{_CERTIFICATES} and {_PSK_FILE} exclude each other")


def _boolean(name: str, value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError(f"{name} must be 0 or 1, not {value!r}")
    return value == "1"


def _quote(text: str, safe: str = "") -> str:
    return quote(text, safe, errors="surrogateescape")
