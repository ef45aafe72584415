"""Certificates and pre-shared keys for tests, under the file names that NBD tools use."""

from __future__ import annotations

from pathlib import Path

import trustme

USER, KEY = "alice", "00112233445566778899aabbccddeeff"


def make_certificates(directory: Path, *, host: str = "localhost") -> Path:
    """Make certificates of an authority, of a server on ``host`` and of a client."""
    directory.mkdir(exist_ok=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca-cert.pem"))
    for side, name in (("server", host), ("client", "somebody@example.com")):
        issued = authority.issue_cert(name)
        key = directory / f"{side}-key.pem"
        issued.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)
        issued.cert_chain_pems[0].write_to_path(str(directory / f"{side}-cert.pem"))
    return directory


def make_keys(file: Path) -> Path:
    """Write pre-shared keys of two users."""
    file.write_text(f"# of a test\n\n{USER}:{KEY}\nbob:{KEY[::-1]}\n")
    file.chmod(0o600)
    return file
