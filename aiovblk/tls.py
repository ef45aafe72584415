"""Create TLS contexts from certificate or key files, for NBD clients and servers.

The file names are those that libnbd, qemu and nbdkit use:

* a directory of certificates holds ``ca-cert.pem`` and ``server-cert.pem``, ``server-key.pem`` or
  ``client-cert.pem``, ``client-key.pem``;
* a file of pre-shared keys has lines of ``user:hexadecimal key``, as psktool(1) writes them.

TLS is 1.2 or later, as the NBD specification's "TLS versions" requires. All functions here read
files: call them in a thread if that could take time.
"""

from __future__ import annotations

import errno
import os
import re
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .keyfiles import read_key_file, warn_if_shared

StrPath = str | os.PathLike[str]

_PSK_CIPHERS = "kECDHEPSK:kDHEPSK"
"""Key exchanges with a pre-shared key and forward secrecy."""

MAX_PSK_FILE = 16 << 20
"""Bytes of a file of pre-shared keys: some 100,000 of them."""

_KEY_LINE = re.compile("(.+):((?:[0-9A-Fa-f]{2})+)")


def client_context(directory: StrPath | None = None, *, verify_peer: bool = True) -> ssl.SSLContext:
    """Create the context of a client: trusted authorities, and its own certificate if it has one.

    Args:
        directory: certificates; None to trust the authorities that the system trusts.
        verify_peer: whether the server must have a trusted certificate for its host name.

    Raises:
        OSError: a file is missing or invalid (ssl.SSLError is an OSError).

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify_peer:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif directory is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_authorities(context, directory)
    if directory is not None and os.path.exists(os.path.join(directory, "client-cert.pem")):
        _load_certificate(context, directory, "client")
    return context


def server_context(directory: StrPath, *, verify_peer: bool = False) -> ssl.SSLContext:
    """Create the context of a server: its own certificate, and the authority of its clients.

    Args:
        directory: certificates; ``ca-cert.pem`` is needed only to verify clients.
        verify_peer: whether clients must have a certificate that the authority has signed.

    Raises:
        OSError: a file is missing or invalid (ssl.SSLError is an OSError).

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_certificate(context, directory, "server")
    if verify_peer:
        _load_authorities(context, directory)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def psk_client_context(file: StrPath, user: str) -> ssl.SSLContext:
    """Create the context of a client that authenticates, and the server, by a pre-shared key.

    Args:
        file: the key file.
        user: the user whose key of that file is used.

    Raises:
        OSError: the file cannot be read, or has no key of this user; or this Python does not
            support pre-shared keys (3.13 and later do).

    """
    context = _psk_context(ssl.PROTOCOL_TLS_CLIENT)
    key = _load_keys(file).get(user)
    if key is None:
        raise OSError(errno.ENOKEY, f"there is no key of user {user!r}", os.fspath(file))
    if sys.version_info >= (3, 13):
        context.set_psk_client_callback(lambda hint: (user, key))
    return context


def psk_server_context(file: StrPath) -> ssl.SSLContext:
    """Create the context of a server that accepts clients with one of these pre-shared keys.

    Args:
        file: the key file.

    Raises:
        OSError: the file cannot be read, or has no key; or this Python does not support pre-shared
            keys (3.13 and later do).

    """
    context = _psk_context(ssl.PROTOCOL_TLS_SERVER)
    keys = _load_keys(file)
    if not keys:
        raise OSError(errno.ENOKEY, "there is no key; psktool(1) makes one", os.fspath(file))
    if sys.version_info >= (3, 13):
        # An empty key, for an unknown user, ends the handshake.
        context.set_psk_server_callback(lambda user: keys.get(user or "", b""))
    return context


def _psk_context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    if sys.version_info < (3, 13) or not ssl.HAS_PSK:
        raise OSError(
            errno.EOPNOTSUPP,
            "TLS with pre-shared keys needs Python 3.13 or later; use certificates here",
        )
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = (
        ssl.CERT_NONE
    )  # there are no certificates: the key authenticates both sides
    # In TLS 1.3 OpenSSL binds such keys to one hash function, which not all peers negotiate.
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_PSK_CIPHERS)
    return context


def _load_keys(file: StrPath) -> dict[str, bytes]:
    keys: dict[str, bytes] = {}
    text = read_key_file(file, MAX_PSK_FILE).decode("utf-8", "surrogateescape")
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if not line or line.startswith("#"):
            continue
        match = _KEY_LINE.fullmatch(line)
        if match is None:
            reason = f"line {number} is not USER:HEXADECIMAL KEY"
            raise OSError(errno.EINVAL, reason, os.fspath(file))
        keys[match[1]] = bytes.fromhex(match[2])
    return keys


def _load_certificate(context: ssl.SSLContext, directory: StrPath, side: str) -> None:
    certificate, key = (_file(directory, f"{side}-{part}.pem") for part in ("cert", "key"))
    warn_if_shared(key)
    with _errors_naming(certificate, key):
        context.load_cert_chain(certificate, key)


def _load_authorities(context: ssl.SSLContext, directory: StrPath) -> None:
    file = _file(directory, "ca-cert.pem")
    with _errors_naming(file):
        context.load_verify_locations(file)


@contextmanager
def _errors_naming(*files: str) -> Iterator[None]:
    """Add the file names to errors of the ssl module, which do not have them."""
    try:
        yield
    except ssl.SSLError as exc:
        raise ssl.SSLError(exc.errno, f"{' and '.join(files)}: {exc.strerror}") from None


def _file(directory: StrPath, name: str) -> str:
    """Return the path of a required file; if it is missing, raise an error that names it."""
    path = os.path.join(directory, name)
    with open(path, "rb"):
        return path
