"""TLS contexts, tested by handshakes in memory; then the client's STARTTLS."""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
import sys
from functools import partial
from pathlib import Path

import pytest

from aiovblk import ProtocolError, connect, tls
from tests.support.certificates import KEY, USER, make_certificates, make_keys

from ..support.scripted_server import listening

has_psk = sys.version_info >= (3, 13)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Valid certificates of an authority that is not trusted."""
    return make_certificates(tmp_path_factory.mktemp("others"))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return make_keys(tmp_path / "keys")


def handshake(
    client: ssl.SSLContext, server: ssl.SSLContext, hostname: str | None = "localhost"
) -> ssl.SSLObject:
    """Complete a handshake in memory; return the client's side."""
    pipes = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(pipes[0], pipes[1], server_hostname=hostname),
        server.wrap_bio(pipes[1], pipes[0], server_side=True),
    ]
    done = [False, False]
    while not all(done):
        for index, side in enumerate(sides):
            try:
                side.do_handshake()
                done[index] = True
            except ssl.SSLWantReadError:
                pass
    sides[0].write(b"data")
    assert sides[1].read() == b"data"  # in TLS 1.3 a rejected client learns of it here
    return sides[0]


def test_certificates_of_one_authority_get_along(certificates: Path) -> None:
    client, server = tls.client_context(certificates), tls.server_context(certificates)
    assert handshake(client, server).version() in ("TLSv1.2", "TLSv1.3")


@pytest.mark.parametrize("side", ["client", "server"])
def test_tls_before_1_2_is_not_spoken(certificates: Path, side: str) -> None:
    make = tls.client_context if side == "client" else tls.server_context
    assert make(certificates).minimum_version is ssl.TLSVersion.TLSv1_2


def test_server_of_another_authority_is_not_trusted(certificates: Path, others: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(tls.client_context(certificates), tls.server_context(others))


def test_server_of_another_name_is_not_trusted(certificates: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(tls.client_context(certificates), tls.server_context(certificates), "example.com")


def test_system_does_not_trust_the_authority_of_a_test(certificates: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(tls.client_context(), tls.server_context(certificates))


def test_any_server_will_do_where_it_is_not_verified(certificates: Path) -> None:
    client = tls.client_context(verify_peer=False)
    handshake(client, tls.server_context(certificates), "example.com")


def test_client_with_a_certificate_is_let_in(certificates: Path) -> None:
    server = tls.server_context(certificates, verify_peer=True)
    handshake(tls.client_context(certificates), server)


def test_client_without_certificate_is_not_let_in(certificates: Path, tmp_path: Path) -> None:
    (tmp_path / "ca-cert.pem").write_bytes((certificates / "ca-cert.pem").read_bytes())
    server = tls.server_context(certificates, verify_peer=True)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(tls.client_context(tmp_path), server)


def test_client_of_another_authority_is_not_let_in(certificates: Path, others: Path) -> None:
    server = tls.server_context(certificates, verify_peer=True)
    (client := tls.client_context(others)).check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client, server)


@pytest.mark.parametrize("missing", ["ca-cert.pem", "client-key.pem"])
def test_missing_file_of_a_client_is_named(tmp_path: Path, missing: str) -> None:
    directory = make_certificates(tmp_path / "certificates")
    (directory / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"'{re.escape(str(directory / missing))}'"):
        tls.client_context(directory)


@pytest.mark.parametrize("missing", ["ca-cert.pem", "server-cert.pem", "server-key.pem"])
def test_missing_file_of_a_server_is_named(tmp_path: Path, missing: str) -> None:
    directory = make_certificates(tmp_path / "certificates")
    (directory / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"'{re.escape(str(directory / missing))}'"):
        tls.server_context(directory, verify_peer=True)


def test_authority_is_needed_only_to_verify_clients(tmp_path: Path) -> None:
    directory = make_certificates(tmp_path / "certificates")
    (directory / "ca-cert.pem").unlink()
    tls.server_context(directory)


# Pre-shared keys


@pytest.mark.skipif(has_psk, reason="this Python has them")
def test_pre_shared_keys_need_a_newer_python(keys: Path) -> None:
    with pytest.raises(OSError, match=r"needs Python 3\.13") as caught:
        tls.psk_client_context(keys, USER)
    assert caught.value.errno == errno.EOPNOTSUPP
    with pytest.raises(OSError, match=r"needs Python 3\.13"):
        tls.psk_server_context(keys)


needs_psk = pytest.mark.skipif(not has_psk, reason="came with Python 3.13; see the test above")


@needs_psk
@pytest.mark.parametrize("user", [USER, "bob"])
def test_users_with_their_keys_are_let_in(keys: Path, user: str) -> None:
    side = handshake(tls.psk_client_context(keys, user), tls.psk_server_context(keys))
    cipher = side.cipher()
    assert cipher is not None
    assert "DHE-PSK" in cipher[0]


@needs_psk
@pytest.mark.parametrize("line", [f"{USER}:{KEY[::-1]}", f"eve:{KEY}"], ids=["key", "user"])
def test_wrong_key_and_unknown_user_are_not_let_in(keys: Path, tmp_path: Path, line: str) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(line)
    client = tls.psk_client_context(wrong, line.partition(":")[0])
    with pytest.raises(ssl.SSLError):
        handshake(client, tls.psk_server_context(keys))


@needs_psk
def test_client_without_key_is_not_let_in(keys: Path) -> None:
    with pytest.raises(ssl.SSLError):
        handshake(tls.client_context(verify_peer=False), tls.psk_server_context(keys))


@needs_psk
def test_user_without_key_is_named(keys: Path) -> None:
    with pytest.raises(OSError, match="no key of user 'eve'"):
        tls.psk_client_context(keys, "eve")


@needs_psk
@pytest.mark.parametrize("line", ["alice", "alice:", ":00", "alice:xyz", "\xff"])
def test_wrong_line_of_keys_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "keys").write_bytes(f"bob:00\n{line}\n".encode("latin1"))
    with pytest.raises(OSError, match="line 2 is not USER:HEXADECIMAL KEY"):
        tls.psk_server_context(tmp_path / "keys")


@needs_psk
def test_file_without_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(OSError, match="there is no key; psktool") as caught:
        tls.psk_server_context(tmp_path / "keys")
    assert caught.value.filename == str(tmp_path / "keys")


def test_certificate_and_key_that_do_not_match_are_named(tmp_path: Path, others: Path) -> None:
    folder = make_certificates(tmp_path)
    (folder / "server-key.pem").write_bytes((others / "server-key.pem").read_bytes())
    files = f"{folder}/server-cert.pem and {folder}/server-key.pem: "
    with pytest.raises(ssl.SSLError, match=re.escape(files)):
        tls.server_context(folder)


def test_authority_that_is_none_is_named(tmp_path: Path) -> None:
    folder = make_certificates(tmp_path)
    (folder / "ca-cert.pem").write_text("nothing\n")
    for make in (partial(tls.server_context, verify_peer=True), tls.client_context):
        with pytest.raises(ssl.SSLError, match=re.escape(f"{folder}/ca-cert.pem: ")):
            make(folder)


# The client


async def test_client_speaks_tls(certificates: Path) -> None:
    async with listening(tls=tls.server_context(certificates)) as server:
        uri = f"nbds+unix:///?socket={server.path}&tls-certificates={certificates}"
        async with connect(uri) as remote:
            peer = await server.peer()
            data = bytes(range(256)) * 4096
            writing = asyncio.ensure_future(remote.write(0, data))
            request = await peer.request()
            peer.succeed(request)
            await writing
            assert peer.data[request.cookie] == data
            reading = asyncio.ensure_future(remote.read(0, len(data)))
            peer.succeed(await peer.request(), data)
            assert await reading == data
            assert peer.writer.get_extra_info("ssl_object") is not None
        await peer.disconnected()


async def test_client_takes_the_context_that_it_is_given(certificates: Path) -> None:
    async with listening(tls=tls.server_context(certificates)) as server:
        uri = f"nbds+unix:///?socket={server.path}"
        async with connect(uri, tls=tls.client_context(certificates)):
            peer = await server.peer()
        await peer.disconnected()


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ("tls-certificates={}&tls-hostname=example.com", "Hostname mismatch"),
        ("", "unable to get local issuer certificate"),
    ],
)
async def test_client_verifies_the_server(certificates: Path, parameters: str, why: str) -> None:
    async with listening(tls=tls.server_context(certificates)) as server:
        uri = f"nbds+unix:///?socket={server.path}&{parameters.format(certificates)}"
        with pytest.raises(ssl.SSLCertVerificationError, match=why):
            async with connect(uri):
                pass


async def test_client_does_without_that_on_demand(certificates: Path) -> None:
    async with listening(tls=tls.server_context(certificates)) as server:
        uri = f"nbds+unix:///?socket={server.path}&tls-verify-peer=0"
        async with connect(uri):
            peer = await server.peer()
        await peer.disconnected()


async def test_client_does_not_go_on_without_tls() -> None:
    async with listening() as server:
        with pytest.raises(ProtocolError, match="refused STARTTLS"):
            async with connect(f"nbds+unix:///?socket={server.path}"):
                pass


async def test_missing_certificates_are_named(tmp_path: Path) -> None:
    async with listening() as server:
        uri = f"nbds+unix:///?socket={server.path}&tls-certificates={tmp_path}"
        with pytest.raises(FileNotFoundError, match=r"ca-cert\.pem"):
            async with connect(uri):
                pass
