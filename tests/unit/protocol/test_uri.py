"""NBD URIs, against literal ones."""

from __future__ import annotations

import pytest

from aiovblk.protocol import URI

BOTH_WAYS = {
    "nbd://localhost/": URI(),
    "nbd://example.com/disk": URI("disk", "example.com"),
    "nbd://example.com//disk": URI("/disk", "example.com"),
    "nbd://example.com/a/b": URI("a/b", "example.com"),
    "nbd://example.com/hello%20world": URI("hello world", "example.com"),
    "nbd://example.com/%C3%A4%3F%23%25": URI("ä?#%", "example.com"),
    "nbd://192.0.2.1:10810/": URI("", "192.0.2.1", 10810),
    "nbd://[::1]/x": URI("x", "::1"),
    "nbd://[::1]:1/x": URI("x", "::1", 1),
    "nbd://[fe80::1%25eth0]/": URI("", "fe80::1%eth0"),
    "nbds://alice@example.com/": URI("", "example.com", tls=True, user="alice"),
    "nbds://a%40b@example.com/": URI("", "example.com", tls=True, user="a@b"),
    "nbd+unix:///?socket=/run/nbd.sock": URI(socket="/run/nbd.sock"),
    "nbd+unix:///export?socket=nbd.sock": URI("export", socket="nbd.sock"),
    "nbd+unix:////e?socket=nbd.sock": URI("/e", socket="nbd.sock"),
    "nbd+unix:///?socket=%00/abstract": URI(socket="\0/abstract"),
    "nbd+unix:///?socket=/a%26b%3D%2B%FF": URI(socket="/a&b=+\udcff"),
    "nbds+unix:///?socket=s": URI(socket="s", tls=True),
    "nbds+unix://bob@/e?socket=s&tls-psk-file=/k": URI(
        "e", socket="s", tls=True, user="bob", tls_psk_file="/k"
    ),
    "nbds://h/?tls-certificates=/etc/pki&tls-hostname=other&tls-verify-peer=0": URI(
        "",
        "h",
        tls=True,
        tls_certificates="/etc/pki",
        tls_hostname="other",
        tls_verify_peer=False,
    ),
}

ONE_WAY = {
    "nbd://": URI(),
    "nbd:///": URI(),
    "nbd:///disk": URI("disk"),
    "nbd://example.com": URI("", "example.com"),
    "nbd://example.com:10809/": URI("", "example.com"),
    "nbd://example.com:/": URI("", "example.com"),
    "NBD://Example.COM/Disk": URI("Disk", "example.com"),
    "nbd+unix:///?socket=/a+b": URI(socket="/a+b"),
    "nbds://h?tls-verify-peer=1": URI("", "h", tls=True),
}

WRONG = {
    "": "scheme must be one of nbd, nbds, nbd\\+unix, nbds\\+unix",
    "example.com": "scheme must be one of",
    "http://example.com/": "scheme must be one of",
    "nbd+vsock:///": "scheme must be one of",
    "nbd:example.com": "// must follow nbd:",
    "nbd://h:port/": "its port",
    "nbd://h:65536/": "its port",
    "nbd://[::1/": "Invalid IPv6 URL",
    "nbd://h/a#b": "must be written as %23",
    "nbd://h/%FF": "can't decode",
    "nbd://h/a%00b": "none of them NUL",
    f"nbd://h/{4097 * 'x'}": "at most 4096 bytes",
    "nbd://user:secret@h/": "NBD has no passwords",
    "nbd://h/?colour=red": "parameter 'colour' is unknown",
    "nbd://h/?socket": "needs the scheme nbd\\+unix",
    "nbds://h/?tls-type=anon": "parameter 'tls-type' is unknown",
    "nbds://h/?socket=/s": "needs the scheme nbds\\+unix",
    "nbd+unix:///": "socket is missing; write nbd\\+unix:///EXPORT\\?socket=PATH",
    "nbd+unix:///?socket=": "socket is missing",
    "nbd+unix://export?socket=/s": "no host; write nbd\\+unix:///export",
    "nbd+unix://:1/?socket=/s": "no host",
    "nbd+unix:///?socket=/s&socket=/t": "'socket' is given twice",
    "nbd://h/?tls-certificates=/c": "tls-certificates needs the scheme nbds",
    "nbd+unix:///?socket=/s&tls-hostname=h": "tls-hostname needs the scheme nbds\\+unix",
    "nbds://h/?tls-verify-peer=yes": "tls-verify-peer must be 0 or 1, not 'yes'",
    "nbds://h/?tls-psk-file=/k&tls-certificates=/c": "exclude each other",
}


@pytest.mark.parametrize(("text", "uri"), BOTH_WAYS.items(), ids=list(BOTH_WAYS))
def test_uri_is_read_and_written(text: str, uri: URI) -> None:
    assert URI.parse(text) == uri
    assert str(uri) == text


@pytest.mark.parametrize(("text", "uri"), ONE_WAY.items(), ids=list(ONE_WAY))
def test_uri_is_read_in_other_forms(text: str, uri: URI) -> None:
    assert URI.parse(text) == uri
    assert URI.parse(str(uri)) == uri


@pytest.mark.parametrize(("text", "why"), WRONG.items(), ids=range(len(WRONG)))
def test_wrong_uri_is_refused_with_a_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be used as an NBD URI: .*{why}"):
        URI.parse(text)
