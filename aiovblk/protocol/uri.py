"""NBD URIs, text to values and back (the specification's doc/uri.md).

What holds here, beyond that text:

* What a URI asks for and this library would not do is an error, never ignored: a parameter that
  nobody knows, TLS parameters without TLS, a host before a Unix socket.
* ``tls-certificates`` and ``tls-psk-file`` are those of libnbd.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit

from .constants import DEFAULT_PORT, MAX_STRING

SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix")

_SOCKET = "socket"
_CERTIFICATES = "tls-certificates"
_PSK_FILE = "tls-psk-file"
_HOSTNAME = "tls-hostname"
_VERIFY_PEER = "tls-verify-peer"
_PARAMETERS = {_SOCKET, _CERTIFICATES, _PSK_FILE, _HOSTNAME, _VERIFY_PEER}


@dataclass(frozen=True, slots=True)
class URI:
    """Where an export is, and how to get there."""

    export: str = ""
    """Name of the export; empty for the server's default one."""
    host: str = "localhost"
    """Name or address; has no meaning where there is a :attr:`socket`."""
    port: int = DEFAULT_PORT
    """Of TCP."""
    socket: str | None = None
    """Path of a Unix socket; one that begins with a NUL is in Linux's abstract namespace."""
    tls: bool = False
    """Whether TLS is required."""
    user: str | None = None
    """Who we are, for TLS with pre-shared keys."""
    tls_certificates: str | None = None
    """Directory of ``ca-cert.pem``, ``client-cert.pem`` and ``client-key.pem``."""
    tls_psk_file: str | None = None
    """File of pre-shared keys, lines of ``user:hexadecimal key``."""
    tls_hostname: str | None = None
    """Whom the server's certificate must name, where that is not :attr:`host`."""
    tls_verify_peer: bool = True
    """Whether the server's certificate is looked at."""

    @classmethod
    def parse(cls, text: str) -> URI:
        """Read a URI of one of the schemes nbd, nbds, nbd+unix and nbds+unix.

        Raises:
            ValueError: it is none, or asks for what cannot be had; the message says what.

        """
        try:
            return _parse(text)
        except ValueError as exc:
            shown = without_password(text)
            raise ValueError(f"{shown!r} cannot be used as an NBD URI: {exc}") from None

    def __str__(self) -> str:
        """The URI without what goes without saying; :meth:`parse` makes the same of it."""
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
    """Return a URI to be shown: whatever stands where other URIs have a password is left out."""
    return _PASSWORD.sub(r"\1:...@", text, count=1)


_PASSWORD = re.compile(r"(?<=//)([^/?#:]*):[^/?#]*@")


def _parse(text: str) -> URI:
    scheme, _, rest = text.partition(":")
    if scheme.lower() not in SCHEMES:
        raise ValueError(f"its scheme is none of {', '.join(SCHEMES)}")
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
    host, port = unquote(parts.hostname or ""), parts.port
    if parts.scheme.endswith("+unix") and (host or port is not None):
        raise ValueError(f"a Unix socket has no host; write {parts.scheme}:///{host}?socket=PATH")
    return host or URI().host, DEFAULT_PORT if port is None else port


def _user(parts: SplitResult) -> str | None:
    if parts.password is not None:
        raise ValueError("there are no passwords in NBD; for keys there is tls-psk-file")
    return None if parts.username is None else unquote(parts.username)


def _parameters(parts: SplitResult) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in filter(None, parts.query.split("&")):
        name, _, value = each.partition("=")
        if name not in _PARAMETERS:
            raise ValueError(f"its parameter {name!r} is unknown")
        if name in found:
            raise ValueError(f"its parameter {name!r} is there twice")
        # Not what forms of web pages use: a plus sign stands for itself. Paths need not be UTF-8.
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
        raise ValueError(f"{name} is 0 or 1, not {value!r}")
    return value == "1"


def _quote(text: str, safe: str = "") -> str:
    return quote(text, safe, errors="surrogateescape")
